"""`precision: auto`: bf16 where it is the faster one, and the same for every stage."""

import pytest
import torch

from lfm import precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CPUS: dict[str, tuple[dict[str, object], str]] = {
    "AMD Zen 3": ({"cpu_name": "AMD EPYC", "avx2": True}, "float32"),
    "AMD Zen 4": ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
    "Intel Cooper Lake": ({"cpu_name": "Intel(R) Xeon(R) Platinum", "avx512_bf16": True}, "float32"),
    "Intel Sapphire Rapids": ({"cpu_name": "Intel(R) Xeon(R)", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
    "another kind, or a torch that does not tell": ({}, "float32"),
}


@pytest.mark.parametrize("cpu", CPUS)
def test_auto_on_a_cpu(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, expected = CPUS[cpu]
    monkeypatch.setattr(precision, "_cpu_features", lambda: features)
    assert precision.resolve("auto", CPU) == expected
    assert [precision.resolve(name, CPU) for name in ("bf16", "float32")] == ["bf16", "float32"]


@pytest.mark.parametrize(("able", "expected"), [(True, "bf16"), (False, "float32")])
def test_auto_on_a_gpu(able: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return able or including_emulation  # an old GPU emulates it, slowly

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision.resolve("auto", GPU) == expected


@pytest.mark.parametrize("name", ["bf16", "float32"])
def test_models_run_in_what_auto_means(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "resolve", lambda *_: name)
    with precision.precision("auto", CPU):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == {"bf16": torch.bfloat16, "float32": torch.float32}[name]
