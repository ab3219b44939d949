"""Packaging for ITNet: everything is read from `settings.ini`, so that notebooks and package share one description."""
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


cfg = settings()
readme = ROOT / "README.md"
package = cfg["lib_path"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
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
    extras_require={"dev": [*cfg["dev_requirements"].split(), *cfg["gpu_requirements"].split()], "gpu": cfg["gpu_requirements"].split()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={package}._modidx:d"],  # nbdev finds a symbol's page through this
    },
    zip_safe=False,
)
