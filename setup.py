"""Packaging for ITNet: everything is read from `settings.ini`, so that notebooks and package share one description."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
STATUS = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}


def settings() -> dict[str, str]:
    "The `[DEFAULT]` section of settings.ini, with `%(name)s` filled in."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def absolute(text: str, cfg: dict[str, str]) -> str:
    "README as an index of packages shows it: links to notebooks lead to the site, others and pictures to the repository."
    site, repository = f"{cfg['doc_host'].rstrip('/')}/{cfg['doc_baseurl'].strip('/')}", cfg["git_url"].rstrip("/")

    def link(match: re.Match) -> str:
        before, url = match.groups()
        if re.match(r"[a-z][a-z0-9+.-]*:|#", url, re.I): return match[0]
        if before.startswith("!"): return f"{before}{repository}/raw/{cfg['branch']}/{url}"
        page = re.fullmatch(rf"{cfg['nbs_path']}/(?:(.*)/)?(?:\d+[a-zA-Z0-9]*_)?([^/]+)\.ipynb", url)
        if page is None: return f"{before}{repository}/blob/{cfg['branch']}/{url}"
        return f"{before}{site}/{page[1] + '/' if page[1] else ''}{page[2].lower()}.html"

    return re.sub(r"(!?\[[^\]]*\]\()([^)\s]+)", link, text)


def extras(cfg: dict[str, str]) -> dict[str, list[str]]:
    "What each extra brings: those of settings.ini, `all` of them that a user may want, and `dev`, which is everything."
    found = {name: cfg[f"{name}_requirements"].split() for name in ("train", "hub", "lab", "gpu")}
    found["all"] = list(dict.fromkeys(r for some in found.values() for r in some))
    return found | {"dev": [*found["all"], *cfg["dev_requirements"].split()]}


cfg = settings()
readme = ROOT / "README.md"
package = cfg["lib_path"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=absolute(readme.read_text(encoding="utf-8"), cfg) if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[
        f"Development Status :: {STATUS[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3",
        "Framework :: Jupyter",
    ],
    packages=find_packages(include=[package, f"{package}.*"]),
    package_dir={"": "."},      # `pip install -e` puts this folder on the path: beside it, the checkout is then no package
    include_package_data=True,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras(cfg),
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={package}._modidx:d"],  # nbdev finds a symbol's page through this
    },
    zip_safe=False,
)
