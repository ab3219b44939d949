"""Keep notebooks clean in this checkout: what `nbdev_install_hooks` does, without writing outside the checkout.

JupyterLab strips metadata when it saves (a hook in the environment's own configuration, not in `~/.jupyter`), and git
merges notebooks cell by cell (a merge driver in the checkout's own `.git/config`; `.gitattributes` names it).
Outside a git checkout only the first is installed. nbdev's own save hook is not used: it looks for the notebook in the
folder that the server was started in, and fails for any other.
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAVE_HOOK = '''# Written by tools/hooks.py: notebooks of this project are cleaned as they are saved.
from pathlib import Path

def clean_on_save(model, path, contents_manager, **kwargs):
    inside = (Path(contents_manager.root_dir) / path.strip("/")).resolve().is_relative_to({root!r})
    if not inside or model["type"] != "notebook" or model["content"]["nbformat"] != 4: return
    from nbdev.clean import clean_nb
    clean_nb(model["content"])

c.ContentsManager.pre_save_hook = clean_on_save
'''


def git(*args: str) -> str | None:
    "Output of a git command in the checkout, or None where there is no git or no checkout."
    try: done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
    except FileNotFoundError: return None
    return done.stdout.strip() if done.returncode == 0 else None


def jupyter_hook(prefix: Path) -> None:
    "Clean notebooks on save, for the Jupyter of the environment at `prefix`."
    config = prefix / "etc" / "jupyter" / "jupyter_server_config.py"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(SAVE_HOOK.format(root=str(ROOT)))


def merge_driver(bin_dir: Path) -> bool:
    "Merge notebooks with `nbdev_merge`; False outside a checkout whose top folder this is."
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT: return False
    settings = {"name": "merge notebooks cell by cell", "driver": f'"{bin_dir / "nbdev_merge"}" %O %A %B %P'}
    return all(git("config", "--local", f"merge.nbdev-merge.{k}", v) is not None for k, v in settings.items())


def main() -> None:
    if sys.prefix != sys.base_prefix: jupyter_hook(Path(sys.prefix))
    merging = merge_driver(Path(sys.executable).parent)
    print("notebook hooks: clean on save" + (", merge by cell" if merging else " (no git checkout: no merge driver)"))


if __name__ == "__main__": main()
