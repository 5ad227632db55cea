"""Where the kernels run: on the GPU when there is one, else on the CPU through Triton's interpreter.

The interpreter must be asked for before Triton is first imported, and numpy, which it computes with, must not
start a thread pool beside every test worker.
"""

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# PyTorch's code generator otherwise compiles a program for each instruction set before it trusts the processor's flags.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


def _make_torchvision_importable() -> torch.library.Library | None:
    """PyPI's torchvision is built for CUDA; beside a CPU build of PyTorch its import misses two operators."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    try:
        for compiled in Path(found.origin).parent.glob("_C*.so"):  # _C.so, or _C_stable.so from torchvision 0.29 on
            torch.ops.load_library(compiled)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library  # to be kept: what it defines goes with it
    return None


TORCHVISION = _make_torchvision_importable()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite (`pytest` with no path) uses every core; a part of it, or a GPU, stays in one process."""
    if hasattr(config, "workerinput"):
        return
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if whole and not GPU and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        config.option.numprocesses = os.cpu_count()
        config.option.dist = "worksteal"


def pytest_configure() -> None:
    # The libraries of all integrations are many objects, and each full collection visits them all.
    gc.set_threshold(10_000, 10, 10)
    if not GPU and importlib.util.find_spec("triton"):
        import faster_interpreter

        faster_interpreter.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device on which backend="triton" runs here."""
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture(scope="session")
def few_digits() -> Iterator[None]:
    """The digits of runs are the first 200 of 1,797, because nothing asks how well a model learns them."""
    pytest.importorskip("lightning", reason="pip install 'rsattn[finetune]'")
    from sklearn import datasets
    from sklearn.utils import Bunch

    from rsattn.finetune import digits, estimating, running

    def write_few(folder: Path) -> None:
        every = datasets.load_digits()
        few = Bunch(images=every.images[:200], target=every.target[:200], target_names=every.target_names)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(datasets, "load_digits", lambda: few)
            digits.write_digits(folder)

    with pytest.MonkeyPatch.context() as patched:
        for user in (estimating, running):
            patched.setattr(user, "write_digits", write_few)
        yield


@pytest.fixture(scope="session")
def run_of_digits(tmp_path_factory: pytest.TempPathFactory, few_digits: None) -> Path:
    """A folder with a short run of `rsattn finetune`, and the image of a digit."""
    from rsattn.cli.main import main

    temporary = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        temporary = temporary.parent  # of all workers: the first trains the model, each has a copy
    trained = temporary / "trained-digits"
    with FileLock(temporary / "trained-digits.lock"):
        if not (trained / "three.png").exists():
            run = trained / "rsattn-runs" / "digits-resvit-0"
            assert main(["finetune", "--epochs", "1", "--out", str(run)]) == 0
            shutil.copy(next((run / "digits" / "3").glob("*.png")), trained / "three.png")
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("digits"), dirs_exist_ok=True))


@pytest.fixture
def in_a_folder_with_a_run(run_of_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_of_digits)


@pytest.fixture
def poisoned_memory():
    """Every freshly allocated tensor is filled with NaN (integers: the largest, or -1), so a gap in a kernel shows."""
    from rsattn.backends import extension

    poison = (lambda on: None) if extension.load() else extension.operators().cpu_poison  # what C++ allocates itself
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    poison(True)
    yield
    poison(False)
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
