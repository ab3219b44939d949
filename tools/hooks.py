"""Keep notebooks clean in this checkout: what `nbdev_install_hooks` does, without writing outside the checkout.

JupyterLab strips metadata when it saves, and gets it back with a notebook that it opens, which it would call modified
otherwise (hooks in the environment's own configuration, not in `~/.jupyter`). Git merges notebooks cell by cell (a merge driver in the checkout's own `.git/config`; `.gitattributes` names it).
Outside a git checkout only the hooks of JupyterLab are installed. nbdev's own save hook is not used: it looks for the notebook in the
folder that the server was started in, and fails for any other.
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JUPYTER = '''# Written by tools/hooks.py: notebooks of this project are cleaned as they are saved, and not modified by being opened.
from pathlib import Path
from ipykernel.ipkernel import IPythonKernel
from jupyter_client.kernelspec import get_kernel_spec
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

def of_project(model, path, manager):
    inside = (Path(manager.root_dir) / path.strip("/")).resolve().is_relative_to({root!r})
    return inside and model["type"] == "notebook" and model["content"] is not None and model["content"]["nbformat"] == 4

def clean_on_save(model, path, contents_manager, **kwargs):
    if not of_project(model, path, contents_manager): return
    from nbdev.clean import clean_nb
    clean_nb(model["content"])

class Opened(AsyncLargeFileManager):
    "JupyterLab writes into a notebook which kernel it got, and calls it modified: here it is handed out with that."
    async def get(self, path, *args, **kwargs):
        model = await super().get(path, *args, **kwargs)
        meta = model["content"]["metadata"] if of_project(model, path, self) else {{}}
        if meta.get("kernelspec", {{}}).get("name") == "python3":
            spec = get_kernel_spec("python3")
            meta["kernelspec"] = dict(name="python3", display_name=spec.display_name, language=spec.language)
            meta["language_info"] = IPythonKernel.language_info
        return model

c.ContentsManager.pre_save_hook = clean_on_save
c.ServerApp.contents_manager_class = Opened
'''


def git(*args: str) -> str | None:
    "Output of a git command in the checkout, or None where there is no git or no checkout."
    try: done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
    except FileNotFoundError: return None
    return done.stdout.strip() if done.returncode == 0 else None


def jupyter_hook(prefix: Path) -> None:
    "Clean notebooks on save and open them unmodified, for the Jupyter of the environment at `prefix`."
    config = prefix / "etc" / "jupyter" / "jupyter_server_config.py"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(JUPYTER.format(root=str(ROOT)))


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
