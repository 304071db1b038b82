"""`turtles image`: builds guest images into the cache, says what is there, removes older ones."""

from __future__ import annotations

from rich.console import Console

from turtles.guests.images import RECIPES, ImageSet, find, obtain, prune, superseded
from turtles.tools.progress import progress


def describe(images: ImageSet, console: Console) -> None:
    """Show a set's files and what they were made from."""
    console.print(
        f"{images.recipe}: Linux {images.kernel_version}, {len(images.packages)} packages", highlight=False
    )
    for path in (images.kernel, images.initrd, images.root):
        size = path.stat().st_blocks * 512 / (1 << 20)
        console.print(f"  {path}  {size:.1f} MiB", highlight=False, soft_wrap=True)


def build_images(name: str, renew: bool) -> int:
    """Build one set unless it is cached."""
    with progress(name) as report:
        images = obtain(RECIPES[name], report, renew)
    describe(images, Console())
    return 0


def list_images() -> int:
    """Say which sets are cached."""
    console = Console()
    for recipe in RECIPES.values():
        images = find(recipe)
        if images is None:
            console.print(f"{recipe.name}: not built yet", highlight=False)
        else:
            describe(images, console)
    if old := superseded():
        console.print(f"{len(old)} older sets: turtles image --prune removes them", highlight=False)
    return 0


def prune_images() -> int:
    """Remove sets that nothing uses any more."""
    with progress("image") as report:
        removed = prune(report)
    for directory in removed:
        Console().print(f"removed {directory}", highlight=False, soft_wrap=True)
    return 0
