"""``python -m bench.gpu.hopper`` without a GPU: what becomes of programs that are right, wrong, late or broken."""

import json

import pytest

from bench.gpu import hopper

DESCRIPTOR = '{"descriptor": {"operand": "over pixels", "pitch": 8, "base_offset": "0", "right": "yyyyyyyy"}}'


def kernel(error):
    return (
        f'{{"kernel": "conv", "size": [3, 45, 83], "error": {error}, "us": 10.0, "tflops": 400.0, "gbs": 2000, '
        '"sm80_us": 20.0}'
    )


RIGHT = f"echo '{DESCRIPTOR}'; echo '{kernel(0.003)}'"


@pytest.fixture
def run(tmp_path, capsys):
    """Runs variants that are shell scripts; returns the status, the JSON and what was printed."""

    def run(**scripts):
        for variant in hopper.VARIANTS:
            program = tmp_path / f"hopper-{variant}"
            program.write_text(f"#!/bin/sh\n{scripts.get(f'variant{variant}', RIGHT)}\n")
            program.chmod(0o755)
        status = hopper.main(["--build", str(tmp_path), "--json", str(tmp_path / "out.json"), "--limit", "2"])
        return status, json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out

    return run


def test_all_right(run):
    status, results, out = run()
    assert status == 0
    assert list(results) == list(hopper.VARIANTS.values())
    assert [[next(iter(row)) for row in rows] for rows in results.values()] == [["descriptor", "kernel"]] * 4
    assert "51% of arithmetic" in out
    assert out.endswith("right variants (CMSLAP_SM90_VARIANT): 0 3 1 2\n")


@pytest.mark.parametrize("error", [0.011, "null"])
def test_a_wrong_kernel_is_a_failure(run, error):
    status, results, out = run(variant1=f"echo '{kernel(error)}'")
    assert status == 1
    assert results["32x8 pixels"][0]["error"] == (None if error == "null" else error)
    assert out.count("WRONG") == 1
    assert out.endswith(": 0 3 2\n")


def test_a_late_variant_keeps_its_answers_and_the_fallback_runs_next(run):
    status, results, out = run(variant0=f"{RIGHT}; printf '{{\"kernel\"'; exec sleep 60")
    assert status == 1
    assert list(results)[1] == "aligned operands"
    assert [next(iter(row)) for row in results[hopper.VARIANTS[0]]] == ["descriptor", "kernel", "failed"]
    assert results[hopper.VARIANTS[0]][-1] == {"failed": "stopped after 2 s"}
    assert out.endswith(": 3 1 2\n")


def test_a_variant_that_breaks(run):
    status, results, _ = run(variant3=f"echo '{DESCRIPTOR}'; exit 1")
    assert status == 1
    assert results["aligned operands"][-1] == {"failed": "exit status 1"}


def test_json_is_there_after_every_variant(run, tmp_path):
    look = f"cp {tmp_path}/out.json {tmp_path}/seen.json; {RIGHT}"
    run(variant1=look)
    assert list(json.loads((tmp_path / "seen.json").read_text())) == [hopper.VARIANTS[0], hopper.VARIANTS[3]]
