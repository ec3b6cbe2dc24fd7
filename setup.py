"""Packaging of fastaae. The folder kernels/ is installed as fastaae.kernels."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def read_version():
    """The version as written in fastaae/__init__.py, read without importing the package (and torch with it)."""
    text = (ROOT / "fastaae" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r"""^__version__ = ["']([^"']+)["']""", text, re.MULTILINE)
    if match is None:
        raise RuntimeError('fastaae/__init__.py has no line of the form: __version__ = "1.2.3"')
    return match.group(1)


readme = ROOT / "README.md"

KERNELS = [".kernels", ".kernels.step", ".kernels.parzen"]
# Triton has wheels for Linux only, and PyTorch's CUDA build brings its own; without it plain torch runs.
GPU = ["triton>=3.6; platform_system == 'Linux' and (platform_machine == 'x86_64' or platform_machine == 'aarch64')"]
IMAGES = ["pillow"]
BOARD = ["tensorboard"]
ONNX = ["onnx", "onnxscript", "onnxruntime"]
HUB = ["huggingface_hub"]
DEMO = ["scikit-learn", "matplotlib", *IMAGES]
DOCS = ["mkdocs", "mkdocs-material", "mkdocstrings[python]", "ruff", "nbmake", "ipykernel"]  # ruff breaks signatures
TEST = [
    *GPU,
    *DEMO,
    *BOARD,
    *ONNX,
    *HUB,
    "h5py",
    "pandas",
    "zarr",
    "pytest",
    "pytest-xdist",
    "pytest-benchmark",
    "hypothesis",
    "mpmath",
    "ruff",
    "pyright[nodejs]",
]

setup(
    name="fastaae",
    version=read_version(),
    description="A minimal, performance-focused engine for adversarial autoencoders",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="fastaae developers",
    license="MIT",
    license_files=["LICENSE"],
    packages=[f"fastaae{name}" for name in ("", ".data", ".engine", ".run", *KERNELS)],
    package_dir={"fastaae": "fastaae", "fastaae.kernels": "kernels"},
    package_data={"fastaae": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "numpy",
        "safetensors>=0.7",
        "nvtx; platform_system != 'Darwin'",  # which has no wheels there
        "filelock; platform_system == 'Windows'",  # locks a run's directory; PyTorch requires it everywhere
        "tqdm",
    ],
    extras_require={
        "gpu": GPU,
        "images": IMAGES,
        "tensorboard": BOARD,
        "onnx": ONNX,
        "hub": HUB,
        "demo": DEMO,
        "docs": DOCS,
        "test": TEST,
    },
    entry_points={"console_scripts": ["fastaae = fastaae.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
