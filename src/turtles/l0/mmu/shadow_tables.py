"""Shadow tables: a guest's page tables, which lie in L1's memory, mirrored with host-physical addresses.

One object serves one family of tables: L1's own, or those that L1 made for its L2s (its shadow tables). The
processor runs on the mirror. It is what SDM 33.3 calls a virtual TLB: it is filled by page faults, and may
lag behind the guest's tables until the guest flushes; then each table in use is compared with what it was
made from (one bulk read and one memcmp), and only what differs is followed. A table that stands still is
tracked (`protection`): stores to it exit and are followed at once, and no flush looks at it. Accessed and
dirty flags: an entry appears here once it is accessed there, and is writable once it is dirty. It injects
nothing and knows no VMCS.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final

from turtles.l0.mmu import paging as P
from turtles.l0.mmu.mirror import Role, Table
from turtles.l0.mmu.protection import Protection
from turtles.l0.pool import PagePool
from turtles.l0.ram import PAGE, L1Memory
from turtles.l0.vmcs import bits as X

_PRIVATE: Final = -1  # l1_pa of a table that mirrors no table: part of a large page, or of the identity
_USED: Final = P.PRESENT | P.ACCESSED
_RIGHTS: Final = P.WRITABLE | P.USER | P.NO_EXECUTE
_SET: Final = P.PRESENT | P.ACCESSED | P.DIRTY  # nobody looks at the mirror's own flags
_FREE: Final = P.WRITABLE | P.USER
_MANY: Final = 1024  # bits that differ: from here on looking at each entry is faster than finding them
_STILL: Final = 4  # flushes that found a table unchanged: from then on it is tracked
_EVERYTHING: Final = P.PRESENT | P.ACCESSED | P.DIRTY | _FREE


class ShadowTables:
    """The mirror of a family.

    Each root has a VPID of its own, which `vpids` gives, so that going from one to another flushes nothing;
    `flush` makes silicon forget what it has under one.
    """

    def __init__(
        self,
        pool: PagePool,
        l1: L1Memory,
        physical_bits: int,
        vpids: Callable[[], int],
        flush: Callable[[int], None],
        protection: Protection | None = None,
    ) -> None:
        self._pool = pool
        self._l1 = l1
        self._protection = protection
        self._read = l1.memory.read
        self._reserved = P.ADDRESS & -1 << physical_bits
        self._vpids = vpids
        self._flush = flush
        self._tables: dict[tuple[int, int, int, Role], Table] = {}
        self._roots: dict[tuple[int, tuple[int, ...], Role], Table] = {}
        self._garbage: list[int] = []
        self._epoch = 0
        self._reductions = 0  # how often an entry that silicon may have cached came to say less

    # --- roots ---

    def root(self, r: P.Registers) -> Table:
        """The mirror of the tables at CR3, not older than the last `forget`."""
        role = Role.of(r)
        pdptes = () if role.long or not role.pae or not role.paging else r.pdptes
        key = (r.cr3 & (P.ADDRESS if role.long else 0xFFFF_FFE0) if role.paging else 0, pdptes, role)
        root = self._roots.get(key)
        if root is None:
            if role.long:
                root = self._table(key[0], 4, 0, role)
            else:
                root = self._new(3, _PRIVATE, 0, role)
            root.vpid = self._vpids()
            self._roots[key] = root
        if root.epoch != self._epoch:
            self._sync(root)
        self._settle(root)
        return root

    def forget(self) -> None:
        """The guest flushed its translations: a mirror is compared with its tables before it is used."""
        self._epoch += 1

    def invalidate(self, root: Table, linear: int) -> bool:
        """INVLPG: the translation of one page, and whatever paging-structure caches hold (SDM 4.10.4.1).

        True where all of silicon's translations were dropped, not only those of the page.
        """
        pending = [root]
        while pending:  # every table but the last level's
            table = pending.pop()
            if table.level > 1:
                if table.source >= 0 and not table.tracked:
                    self._compare(table)
                pending.extend(table.children.values())
        flushed = self._settle(root)
        table = root
        while table.level > 1:
            child = table.children.get(linear >> P.SHIFT[table.level] & 511)
            if child is None:
                return flushed
            table = child
        if table.source >= 0 and not table.tracked:
            index = linear >> 12 & 511
            if table.role.pae:
                new = self._l1.memory.load(table.source + 8 * index)
            else:
                new = memoryview(self._entries(table)).cast("Q")[index]
            if new != table.origins[index]:
                self._follow(table, index, new)
                table.origins[index] = new
                root.flushed = self._reductions  # the caller makes silicon forget this page
        return flushed

    # --- faults ---

    def fill(self, root: Table, linear: int, found: P.Walk | None, r: P.Registers, write: bool) -> int:
        """Mirrors the translation of `linear`. Returns 0: it has changed something, so that the access can be
        tried again; -1: it was all there already; else the l1_pa, which is not RAM.

        `found` is the guest's walk with its flags set, none without paging. Raises PoolExhausted.
        """
        physical = linear & 0xFFFF_FFFF if found is None else found.physical
        level, entry = self._leaf_of(found, physical)
        host_pa = self._l1.host_pa(physical & ~0xFFF)
        if host_pa < 0:
            return physical
        dirty = bool(write or not root.role.protects or entry & P.DIRTY)
        table, changed = self._descend(root, linear, found, r, level, dirty)
        while table.level > 1 and not self._whole(physical, table.level):
            # The page is not one piece of host memory: a table of its own for it.
            index = linear >> P.SHIFT[table.level] & 511
            child = self._private_child(table, index)
            if self._protection is not None and not child.still:
                child.still = 1
                self._populate(child, physical & -P.SIZE[table.level])
            changed |= self._put(table, index, child.host_pa | self._bits(entry, dirty))
            entry, dirty = _EVERYTHING, True
            table = child
        size = P.SIZE[table.level]
        index = linear >> P.SHIFT[table.level] & 511
        if table.level > 1:
            self._unlink(table, index)
        leaf = self._l1.host_pa(physical & -size) | self._bits(entry, dirty)
        if self._protection is not None:
            leaf = self._protection.rights(leaf, table.level)
        changed |= self._put(table, index, leaf | (P.LARGE if table.level > 1 else 0))
        self._settle(root)
        return 0 if changed else -1

    def map_page(self, root: Table, linear: int, found: P.Walk | None, r: P.Registers, host_pa: int) -> None:
        """Maps one page that is not RAM to one of L0's."""
        physical = linear & 0xFFFF_FFFF if found is None else found.physical
        level, entry = self._leaf_of(found, physical)
        table, _ = self._descend(root, linear, found, r, level, True)
        while table.level > 1:
            index = linear >> P.SHIFT[table.level] & 511
            child = self._private_child(table, index)
            self._put(table, index, child.host_pa | self._bits(entry, True))
            entry = _EVERYTHING
            table = child
        self._put(table, linear >> 12 & 511, host_pa | self._bits(entry, True))
        self._settle(root)

    def _private_child(self, table: Table, index: int) -> Table:
        """The table under an entry that stands for no table of the guest's; made if it is not there."""
        child = table.children.get(index)
        if child is None or child.l1_pa != _PRIVATE:
            self._unlink(table, index)
            child = self._new(table.level - 1, _PRIVATE, 0, table.role)
            table.children[index] = child
        return child

    def _leaf_of(self, found: P.Walk | None, physical: int) -> tuple[int, int]:
        """Level of the mirror's leaf, and the guest's entry in the 64-bit format."""
        if found is None:
            return 2, _EVERYTHING
        # A 4-MiB page of 32-bit paging is two of 2 MiB.
        return {12: 1, 21: 2, 22: 2, 30: 3}[found.shift], found.steps[-1].entry

    def _whole(self, physical: int, level: int) -> bool:
        """Whether the mirror can map the page round `physical` as one."""
        size = P.SIZE[level]
        host_pa = self._l1.contiguous(physical & -size, size)
        return host_pa >= 0 and not host_pa & (size - 1) and not self._splits(host_pa, level)

    def _splits(self, host_pa: int, level: int) -> bool:
        return level > 1 and self._protection is not None and self._protection.splits(host_pa, level)

    def _populate(self, child: Table, l1_pa: int) -> None:
        """Maps all of a large page by smaller ones at once, where only a tracked page splits it."""
        level = child.level
        size = P.SIZE[level]
        host_pa = self._l1.contiguous(l1_pa, size * 512)
        if self._protection is None or host_pa < 0 or host_pa & (size - 1):
            return
        bits = self._bits(_EVERYTHING, True) | (P.LARGE if level > 1 else 0)
        for index in range(512):
            at = host_pa + index * size
            if not self._splits(at, level):
                self._put(child, index, self._protection.rights(at | bits, level))

    def _descend(
        self, root: Table, linear: int, found: P.Walk | None, r: P.Registers, stop: int, dirty: bool
    ) -> tuple[Table, bool]:
        """The table at level `stop` for `linear`, with all above it linked as the walk found it."""
        role = root.role
        steps = {step.level: step.entry for step in found.steps} if found is not None else {}
        table, changed = root, False
        for level in range(root.level, stop - 1, -1):
            index = linear >> P.SHIFT[level] & 511
            entry = steps.get(level, _EVERYTHING)
            if level == stop:
                if table.source >= 0 and found is not None:
                    table.origins[index] = entry | (P.DIRTY if dirty else 0) | P.ACCESSED
                break
            part = 0
            if level == 3 and not role.long:
                # The root of PAE paging: what it refers to is in registers, in CR3 (32-bit), or nowhere.
                index &= 3
                if not role.paging:
                    address = _PRIVATE
                elif role.pae:
                    address = r.pdptes[index] & P.ADDRESS
                else:
                    address, part = r.cr3 & 0xFFFF_F000, index
                bits = P.PRESENT
            else:
                address = entry & P.ADDRESS
                bits = self._bits(entry, True)
                if not role.pae:
                    part = index & 1
                if table.source >= 0:
                    table.origins[index] = entry | P.ACCESSED
            child = table.children.get(index)
            if child is None or child.l1_pa != address:
                self._unlink(table, index)
                child = (
                    self._new(level - 1, _PRIVATE, 0, role)
                    if address == _PRIVATE
                    else self._table(address, level - 1, part, role)
                )
                table.children[index] = child
            if child.epoch != self._epoch:
                self._sync(child)
                changed = True  # perhaps by what the access needs
            changed |= self._put(table, index, child.host_pa | bits)
            table = child
        return table, changed

    def _bits(self, entry: int, dirty: bool) -> int:
        """Rights of an entry, as the mirror's has them."""
        return _SET | entry & (_RIGHTS if dirty else _RIGHTS & ~P.WRITABLE)

    def _put(self, table: Table, index: int, value: int) -> bool:
        old = table.entries[index]
        if old == value:
            return False
        if table.level == 3 and not table.role.long:
            value &= P.ADDRESS | P.PRESENT  # a PDPTE has no rights
            if old == value:
                return False
        table.entries[index] = value
        if self._protection is not None:
            self._account(table, index, old, value)
        if (old and (old ^ value) & (P.ADDRESS | P.NO_EXECUTE | P.LARGE)) or old & ~value & _FREE:
            self._reductions += 1
        return True

    # --- following the guest ---

    def _sync(self, top: Table) -> None:
        """Brings a table, and all that hangs on it, up to date."""
        epoch = self._epoch
        pending = [top]
        while pending:
            table = pending.pop()
            if table.epoch == epoch:
                continue
            table.epoch = epoch
            if table.source >= 0 and not table.tracked:
                if self._compare(table):
                    table.still = 0
                elif self._protection is not None:
                    table.still += 1
                    if table.still >= _STILL:
                        self._protection.track(table)
            if table.children:
                pending.extend(table.children.values())

    def reduced(self) -> None:
        """An entry has come to say less, by another's doing: each root is flushed before it is used again."""
        self._reductions += 1

    def follow_store(self, table: Table, host_pa: int, width: int) -> None:
        """The guest has stored `width` bytes at `host_pa` in a tracked table."""
        if not table.role.pae:
            self._compare(table)
            return
        first = host_pa - table.source
        for index in range(first >> 3, (first + width - 1 >> 3) + 1):
            new = self._l1.memory.load(table.source + 8 * index)
            if new != table.origins[index]:
                self._follow(table, index, new)
                table.origins[index] = new

    def _compare(self, table: Table) -> bool:
        """Follows what differs between the guest's table and what it was when last looked at; if anything."""
        now = self._entries(table)
        if now == table.image:
            return False
        different = int.from_bytes(now, "little") ^ int.from_bytes(table.image, "little")
        new = memoryview(now).cast("Q")
        if different.bit_count() > _MANY:
            for index, (one, other) in enumerate(zip(new, table.origins, strict=True)):
                if one != other:
                    self._follow(table, index, one)
            different = 0
        while different:
            index = ((different & -different).bit_length() - 1) >> 6
            different = different >> (index + 1 << 6) << (index + 1 << 6)
            self._follow(table, index, new[index])
        table.image[:] = now
        return True

    def _entries(self, table: Table) -> bytes:
        """The guest's table in the 64-bit format."""
        if table.role.pae:
            return self._read(table.source, PAGE)
        if table.level == 1:
            narrow = memoryview(self._read(table.source + 2048 * table.part, 2048)).cast("I")
            return array("Q", narrow).tobytes()
        narrow = memoryview(self._read(table.source + 1024 * table.part, 1024)).cast("I")
        cr4 = X.CR4_PSE if table.role.pse else 0
        wide = array("Q")
        for entry in narrow:
            value = P.widened(entry, 2, cr4)
            wide.append(value)
            wide.append(value | 1 << 21 if value & P.LARGE else value)
        return wide.tobytes()

    def _follow(self, table: Table, index: int, new: int) -> None:
        """One entry of the guest's has become `new`."""
        level = table.level
        old = table.entries[index]
        if level == 1 or new & P.LARGE:
            if level > 1 and index in table.children:
                self._unlink(table, index)
                old = 0
            self._replace(table, index, old, self._leaf(new, level, table.role))
        elif old:
            child = table.children.get(index)
            if child is not None and child.l1_pa == new & P.ADDRESS and self._usable(new, level, table.role):
                self._put(table, index, child.host_pa | self._bits(new, True))
            else:
                self._unlink(table, index)
                self._replace(table, index, table.entries[index], 0)

    def _replace(self, table: Table, index: int, old: int, value: int) -> None:
        if value != old:
            table.entries[index] = value
            if self._protection is not None:
                self._account(table, index, old, value)
            if old:
                self._reductions += 1

    def _account(self, table: Table, index: int, old: int, new: int) -> None:
        """Keeps the reverse map of writable leaves."""
        protection = self._protection
        if protection is None:
            return
        leaf = P.WRITABLE if table.level == 1 else P.WRITABLE | P.LARGE
        if old & leaf == leaf:
            protection.unmapped(table, index, old)
        if new & leaf == leaf:
            protection.mapped(table, index, new)

    def _usable(self, entry: int, level: int, role: Role) -> bool:
        """Whether an entry is present, sound and accessed, so that it may stand in the mirror."""
        if entry & _USED != _USED:
            return False
        bad = 0
        if role.pae:
            bad = self._reserved if role.no_execute else self._reserved | P.NO_EXECUTE
            if not role.long:
                bad |= 0x7FF << 52
        if entry & P.LARGE and level > 1:
            bad |= P.LARGE_RESERVED[level] if role.pae else 0
            if level == 4:
                return False
        return not entry & bad

    def _leaf(self, entry: int, level: int, role: Role) -> int:
        """The mirror's leaf for a guest's; 0 where only an access can tell (then a fault fills it)."""
        if not self._usable(entry, level, role) or not (role.protects or entry & P.DIRTY):
            return 0
        if not role.pae and level == 2:
            return 0
        size = P.SIZE[level]
        host_pa = self._l1.contiguous(entry & P.ADDRESS & -size, size)
        if host_pa < 0 or host_pa & (size - 1) or self._splits(host_pa, level):
            return 0
        leaf = host_pa | self._bits(entry, bool(entry & P.DIRTY)) | (P.LARGE if level > 1 else 0)
        return leaf if self._protection is None else self._protection.rights(leaf, level)

    # --- pages ---

    def _table(self, l1_pa: int, level: int, part: int, role: Role) -> Table:
        """The mirror of a guest's table: the one that there is, or a new one with what is used there."""
        key = (l1_pa, level, part, role)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = self._new(level, l1_pa, part, role)
        return table

    def _new(self, level: int, l1_pa: int, part: int, role: Role) -> Table:
        host_pa = self._pool.allocate()
        source = self._l1.host_pa(l1_pa) if l1_pa != _PRIVATE else -1
        return Table(self, host_pa, self._pool.slots(host_pa), level, l1_pa, part, role, source)

    def _unlink(self, table: Table, index: int) -> None:
        """Takes a child out. Only private ones end with that; others may have other parents."""
        child = table.children.pop(index, None)
        if child is None:
            return
        table.entries[index] = 0
        self._reductions += 1
        if child.l1_pa == _PRIVATE:
            self._drop(child)

    def _drop(self, table: Table) -> None:
        self._garbage.append(table.host_pa)
        if self._protection is not None:
            for index, entry in enumerate(table.entries):
                if entry:
                    self._account(table, index, entry, 0)
        for child in table.children.values():
            if child.l1_pa == _PRIVATE:
                self._drop(child)

    def _settle(self, root: Table) -> bool:
        """Makes silicon forget, for the root that is used next, what is less than it was.

        What was dropped is free then: before another root is used, it is flushed too.
        """
        for host_pa in self._garbage:
            self._pool.free(host_pa)
        self._garbage.clear()
        if root.flushed == self._reductions:
            return False
        root.flushed = self._reductions
        self._flush(root.vpid)
        return True

    @property
    def pages(self) -> int:
        """Mirrored tables of the guest's."""
        return len(self._tables)

    def release(self) -> None:
        """Gives every page back. Whoever runs on one of the roots must ask for it again."""
        for root in self._roots.values():
            self._flush(root.vpid)
        for table in {*self._tables.values(), *self._roots.values()}:
            self._garbage.append(table.host_pa)
            for child in table.children.values():
                if child.l1_pa == _PRIVATE:
                    self._drop(child)
        self._tables.clear()
        self._roots.clear()
        for host_pa in self._garbage:
            self._pool.free(host_pa)
        self._garbage.clear()
