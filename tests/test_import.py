"""`import rsattn`: what it needs and what it costs, each asked of a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def fresh(code: str) -> list[str]:
    """The lines a new Python prints; a failure shows its traceback."""
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_imports_and_runs_with_nothing_optional_installed() -> None:
    """Triton, the model library and the demo's packages are blocked: a call still works, and says what is missing."""
    optional = [
        "triton",
        "matplotlib",
        "rich",
        "skimage",
        "PIL",
        "pytorch_pretrained_vit",
        "timm",
        "torchvision",
    ]
    printed = fresh(
        f"""
        import sys
        for name in {optional!r}:
            sys.modules[name] = None
        import torch, rsattn
        x = torch.ones(1, 2, 3, 16)
        print(rsattn.residual_attention(x, x, x).best_head.item())
        print(rsattn.backends("cpu")["triton"].reasons[0].replace(" ", "_"))
        """
    )
    assert printed[0] == "0"
    assert printed[1].startswith("Triton_is_not_installed")


def test_costs_no_more_than_importing_torch() -> None:
    """After torch and numpy, nothing is loaded but rsattn's own files and the standard library."""
    added = fresh(
        """
        import sys
        import numpy, torch
        before = set(sys.modules)
        import rsattn
        print(*sorted(set(sys.modules) - before))
        """
    )
    foreign = {name for name in added if name.split(".")[0] not in {"rsattn", *sys.stdlib_module_names}}
    assert foreign == set()
    assert {"rsattn", "rsattn.attention", "rsattn.module"} <= set(added)
    assert not any(
        name.startswith(("rsattn.kernels", "rsattn.cli", "rsattn.finetune", "rsattn.bench")) for name in added
    )
    assert "rsattn.integrations.pytorch_pretrained_vit" not in added


def test_the_environment_is_not_read_at_import() -> None:
    """TRITON_INTERPRET set after the import still counts."""
    printed = fresh(
        """
        import os
        os.environ.pop("TRITON_INTERPRET", None)
        import torch, rsattn
        from rsattn.backends.triton import _interpreter_requested
        print(_interpreter_requested())
        os.environ["TRITON_INTERPRET"] = "1"
        print(_interpreter_requested())
        """
    )
    assert printed == ["False", "True"]


def test_public_names() -> None:
    import rsattn

    assert all(hasattr(rsattn, name) for name in rsattn.__all__)
    documented = {
        "residual_attention",
        "residual_attention_qkvpacked",
        "ResidualAttention",
        "add_best_head",
        "ResidualSelfAttention",
        "patch",
        "record",
        "backends",
    }
    assert documented <= set(rsattn.__all__)
    # No module may share a public function's name: `rsattn.patch` must stay the function.
    assert callable(rsattn.patch)
    assert callable(rsattn.record)
