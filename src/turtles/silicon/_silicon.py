# LOCAL FAKE, never commit
import re
from turtles.silicon import fields, encodings
from turtles.silicon import slots as S
class SiliconError(RuntimeError): pass
def consts(m): return {k:v for k,v in vars(m).items() if k.isupper() and isinstance(v,int)}
VMCS_FIELDS={k:(consts(fields)[k],e) for k,e in consts(encodings).items()}
VMCS_GROUPS={k[8:]:i for i,k in enumerate(k for k in consts(fields) if k.startswith('WRITTEN_'))}
REVISION=0x54555201
class Memory:
    def __init__(s,size,pool=64<<20): s.size=size; s.total=size+pool; s.b=bytearray(s.total); s.flushes=[]
    def __len__(s): return s.total
    def read(s,pa,n): return bytes(s.b[pa:pa+n])
    def write(s,pa,d): s.b[pa:pa+len(d)]=bytes(d)
    def load(s,pa,w=8): return int.from_bytes(s.b[pa:pa+w],'little')
    def store(s,pa,w,v): s.b[pa:pa+w]=v.to_bytes(w,'little')
    def fetch_or(s,pa,w,v):
        o=s.load(pa,w); s.store(pa,w,o|v); return o
    def pool_view(s,pa,n=4096): return memoryview(s.b)[pa:pa+n].cast('Q')
    def invept(s,e=None): s.flushes.append(('ept',e))
    def invvpid(s,k,v=0,l=0): s.flushes.append(('vpid',k,v,l))
class DmaWindow: pass
class Rule: pass
class Model:
    PHYSICAL_BITS=40; FEATURES=('vmx','ept','vmcs_shadowing','monitor')
    def __init__(s,name='max',enable=(),disable=()): s.name=name; s.features=frozenset(set(s.FEATURES)-set(disable)); s.cr4_bits=0x3fffff; s.xcr0_bits=7
    def has(s,f): return f in s.features
    def cpuid(s,l,sub=0,x=7): return (l,sub,x,0)
    def vmx_msr(s,m): return {0x485:1<<29,0x48c:(1<<20)|(3<<25)|(1<<21)|(1<<32)|(15<<40)|1}.get(m,0xffffffff<<32)
class Vmcs:
    def __init__(s,m,pa): s.host_pa=pa; s.slots=m.pool_view(pa)
class Core:
    def __init__(s,m,model,clock='host',origin=None): s.slots=memoryview(bytearray(8*300)).cast('Q'); s.kicked=0; s.broken_rule=None
    def now(s): return 0
    def kick(s): s.kicked+=1
    def enter(s,v,d=0): raise SiliconError('fake')
def check_entry(v,m): return None
def entry_rules(): return []
