"""Pretrained weights before a run: found in the cache, downloaded, or a one-line error without a network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import MakeOptions

from rsattn.cli import weights as vit_weights
from rsattn.cli.command import CommandError
from rsattn.cli.weights import downloaded_file, read_weights, url_of_weights
from rsattn.finetune.fetching import cached_of_timm, fetch
from rsattn.finetune.models import build
from rsattn.finetune.run_folder import RunFolder

TIMM = "test_vit.r160_in1k"  # timm's smallest
HUB = "models--timm--test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Empty caches, and no reachable host; returns the hosts that were requested."""
    import huggingface_hub.constants

    asked: list[object] = []

    def refuse(host: object, *args: object, **kwargs: object) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def refuse_all(*args: object, **kwargs: object) -> Any:
        return refuse(args)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse_all)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return asked


def in_hub_cache(root: Path, file: str) -> Path:
    """The path of a file of `TIMM` in the hub's cache; creates the folders and the reference for it."""
    reference, snapshot = root / "hub" / HUB / "refs" / "main", root / "hub" / HUB / "snapshots" / "abc"
    reference.parent.mkdir(parents=True)
    reference.write_text("abc")
    snapshot.mkdir(parents=True)
    return snapshot / file


NOT_HERE = {
    "resvit": (
        dict(model="resvit", size="base"),
        ("https://github.com/", "B_16_imagenet1k.pth, 346 MB", "--size tiny --weights none"),
    ),
    "resnet18": (dict(model="resnet18"), ("https://download.pytorch.org/models/resnet18-", ".pth, 47 MB")),
    "timm": (dict(model=TIMM), (f"https://huggingface.co/timm/{TIMM}/", "model.safetensors, 1 MB")),
}


@pytest.mark.parametrize(("changes", "words"), NOT_HERE.values(), ids=NOT_HERE)
def test_without_a_network_it_is_one_line_on_what_and_what_else(
    changes: dict[str, object], words: tuple[str, ...], make_options: MakeOptions, tmp_path: Path
) -> None:
    options = make_options(weights="pretrained", image_size=64, **changes)
    with pytest.raises(CommandError) as raised:
        fetch(options)
    message = str(raised.value)
    assert "\n" not in message
    for word in (str(changes["model"]), "Name or service not known", "--weights PATH", "--weights none", *words):
        assert word in message
    assert not Path(options.out).exists()


def test_a_hub_that_is_told_to_stay_offline_is_not_asked(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CommandError, match=r"offline mode is enabled.*--weights PATH"):
        fetch(make_options(model=TIMM, weights="pretrained"))
    assert not no_network


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model="vit"), "no pretrained weights for a tiny vit"),
        (dict(model="cnn"), "no pretrained weights for the cnn"),
        (dict(model="vit_giant_patch14_224"), "timm has no pretrained weights for vit_giant_patch14_224"),
    ],
)
def test_weights_that_nobody_has_are_not_looked_for(
    changes: dict[str, object], words: str, make_options: MakeOptions, no_network: list[object]
) -> None:
    with pytest.raises(CommandError, match=words):
        fetch(make_options(weights="pretrained", **changes))
    assert not no_network


@pytest.mark.parametrize("weights", ["none", "a.pt"])
def test_other_weights_ask_nobody(weights: str, make_options: MakeOptions, no_network: list[object]) -> None:
    fetch(make_options(model="resnet18", weights=weights))
    assert not no_network


def test_a_run_that_goes_on_asks_nobody(make_options: MakeOptions, no_network: list[object]) -> None:
    options = make_options(model="resnet18", weights="pretrained")
    last = RunFolder(Path(options.out)).last
    last.parent.mkdir(parents=True)
    last.touch()
    fetch(options)
    assert not no_network


def test_a_file_in_torchs_cache_is_enough(make_options: MakeOptions, no_network: list[object]) -> None:
    import torchvision.models

    urls = [url_of_weights(), torchvision.models.get_model_weights("resnet18").DEFAULT.url]
    for url, changes in zip(urls, (dict(size="base"), dict(model="resnet18"))):
        downloaded_file(url).parent.mkdir(parents=True, exist_ok=True)
        downloaded_file(url).touch()
        fetch(make_options(weights="pretrained", **changes))
    assert not no_network


def test_what_is_missing_is_downloaded_once(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pytorch_pretrained_vit.configs import PRETRAINED_MODELS

    far = tmp_path / "far.pth"
    torch.save({"weight": torch.ones(3)}, far)
    monkeypatch.setitem(PRETRAINED_MODELS[vit_weights.MODEL], "url", far.as_uri())
    options = make_options(size="base", weights="pretrained")
    fetch(options)
    assert torch.equal(torch.load(downloaded_file(far.as_uri()), weights_only=True)["weight"], torch.ones(3))
    far.unlink()
    fetch(options)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_of_timms_is_built_from_the_cache_without_a_network(
    file: str, make_options: MakeOptions, tmp_path: Path, no_network: list[object]
) -> None:
    from safetensors.torch import save_file

    trained = build(make_options(model=TIMM, image_size=160, seed=5), classes=1000).model.state_dict()
    assert cached_of_timm(TIMM) is None
    path = in_hub_cache(tmp_path, file)
    save_file(trained, path) if path.suffix == ".safetensors" else torch.save(trained, path)
    assert cached_of_timm(TIMM) == path
    options = make_options(model=TIMM, image_size=160, weights="pretrained")
    fetch(options)
    built = build(options, classes=3)
    assert not no_network
    for name, value in built.model.state_dict().items():
        assert torch.equal(value, trained[name]) or name.startswith(built.classifier), name


def test_a_file_of_safetensors_is_a_file_of_weights(make_options: MakeOptions, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path, damaged = tmp_path / "weights.safetensors", tmp_path / "damaged.safetensors"
    trained = build(make_options(seed=5), classes=3).model.state_dict()
    save_file(trained, path)
    built = build(make_options(weights=str(path)), classes=3)
    name = "transformer.blocks.0.proj.weight"
    assert torch.equal(built.model.state_dict()[name], trained[name])
    damaged.write_bytes(b"nothing")
    with pytest.raises(CommandError, match="or not a file of weights"):
        read_weights(damaged)
    with pytest.raises(CommandError, match="cannot read the weights"):
        read_weights(tmp_path / "nowhere.safetensors")
