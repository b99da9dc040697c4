"""How setup.py decides about the CUDA library: what it looks for, what it is told, what it says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """The functions of setup.py, where nothing is set and no nvcc is found but what a test puts into ``tmp_path``."""
    for name in ("CMSLAP_CPU", "CMSLAP_CUDA", "CMSLAP_SM90_VARIANT", "CUDA_PATH", "CXX", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    spec = importlib.util.spec_from_file_location("cmslap_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install_nvcc(folder, release):
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    nvcc.chmod(0o755)


def test_nvcc_is_missing(setup):
    assert "nvcc was not found" in setup.why_no_cuda()


@pytest.mark.parametrize(("release", "reason"), [("13.0", None), ("12.5", None), ("11.8", "version 11.8, and 12.5 is")])
def test_nvcc_is_there(setup, tmp_path, release, reason):
    install_nvcc(tmp_path, release)
    found = setup.why_no_cuda()
    assert found is None if reason is None else reason in found


def test_left_out(setup, tmp_path, monkeypatch):
    install_nvcc(tmp_path, "13.0")
    monkeypatch.setenv("CMSLAP_CUDA", "0")
    assert "CMSLAP_CUDA=0" in setup.why_no_cuda()
    monkeypatch.delenv("CMSLAP_CUDA")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0 7.5+PTX")
    assert "no compute capability of 8.0" in setup.why_no_cuda()


def build_command(setup, tmp_path):
    from setuptools import Distribution

    command = setup.Build(Distribution({"ext_modules": list(setup.extensions)}), no_python_abi_suffix=True)
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    return command


def test_without_nvcc_the_rest_is_built_and_the_reason_noted(setup, tmp_path, monkeypatch):
    command = build_command(setup, tmp_path)
    assert [extension.name for extension in command.extensions] == ["cmslap._C"]
    stale = Path(command.get_ext_fullpath("cmslap._CUDA"))
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier build")
    monkeypatch.setattr(setup.BuildExtension, "run", lambda self: None)
    command.run()
    assert stale.name == "_CUDA.so"
    assert not stale.exists()
    assert "nvcc was not found" in stale.with_suffix(".txt").read_text()


def test_required_but_impossible(setup, tmp_path, monkeypatch):
    monkeypatch.setenv("CMSLAP_CUDA", "1")
    with pytest.raises(SystemExit, match="CMSLAP_CUDA=1, but nvcc was not found"):
        build_command(setup, tmp_path).run()


def test_architectures(setup):
    assert setup.architectures("7.5 8.0;8.6+PTX, 9.0") == [("80", False), ("86", True), ("90a", False)]
    assert setup.architectures("12.0a") == [("120a", False)]
    assert ("90a", False) in setup.architectures(setup.ARCHITECTURES)
    with pytest.raises(SystemExit, match="got 'Hopper'"):
        setup.architectures("Hopper")


def test_machine_code(setup):
    def code(name, wanted):
        return [option.rpartition("code=")[2] for option in setup.machine_code(Path(name), setup.architectures(wanted))]

    assert code("sm80_conv.cu", "8.0+PTX 9.0") == ["sm_80", "compute_80", "sm_90a"]
    assert code("sm90_conv.cu", "8.0+PTX 9.0+PTX") == ["sm_90a"]
    assert code("sm90_conv.cu", "8.6") == ["sm_86"]  # empty, but there to link
    assert code("sm80_conv.cu", "9.0a+PTX") == ["sm_90a", "compute_90"]


def test_a_failed_compilation_says_what_to_do(setup, tmp_path):
    failing = tmp_path / "nvcc"
    failing.write_text("#!/bin/sh\necho 'x.h: error: unsupported GNU version!'\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(setup.CompileError, match=r"unsupported GNU version!\nNVCC_CCBIN names another") as error:
        setup.run([str(failing)])
    assert "CMSLAP_CUDA=0" in str(error.value)


def test_what_is_made_already_is_not_made_again(setup, tmp_path):
    source, target, log = tmp_path / "source", tmp_path / "target.o", tmp_path / "log"
    source.touch()
    command = ["/bin/sh", "-c", f"echo made >> {log}; : > {target}"]
    setup.make(target, command, [source])
    setup.make(target, command, [source])
    assert log.read_text() == "made\n"
    setup.make(target, [*command, "otherwise"], [source])
    assert log.read_text() == "made\nmade\n"


def test_the_variant_of_the_hopper_kernels_reaches_them_and_a_new_one_rebuilds_them(setup, tmp_path, monkeypatch):
    install_nvcc(tmp_path, "13.0")
    log = tmp_path / "log"
    (tmp_path / "bin" / "nvcc").write_text(f'#!/bin/sh\necho "$@" >> {log}\nshift 3\n: > "$1"\n')  # -c source -o target

    def compiled():
        log.unlink(missing_ok=True)
        setup.build_cuda(tmp_path, tmp_path / "library")
        commands = [line.split() for line in log.read_text().splitlines() if line.startswith("-c")]
        variants = {Path(command[1]).name: [word for word in command if "VARIANT" in word] for command in commands}
        return {name: found for name, found in variants.items() if found}, len(commands)

    variants, count = compiled()
    assert set(variants) == {"sm90_conv.cu", "sm90_transposed_conv.cu", "sm90_weight_gradient.cu"}
    assert all(found == ["-DCMSLAP_SM90_VARIANT=0"] for found in variants.values())
    assert count > len(variants)
    assert compiled() == ({}, 0)
    monkeypatch.setenv("CMSLAP_SM90_VARIANT", "3")
    variants, count = compiled()
    assert count == len(variants) == 3
    assert all(found == ["-DCMSLAP_SM90_VARIANT=3"] for found in variants.values())


def test_without_a_compiler(setup, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"c\+\+ was not found: install one \(apt install g\+\+") as error:
        build_command(setup, tmp_path).build_extensions()
    assert "\n" not in str(error.value)
    monkeypatch.setenv("CXX", "/nowhere/ccache g++")
    with pytest.raises(SystemExit, match="/nowhere/ccache was not found"):
        setup.check_compiler()
    monkeypatch.setenv("CXX", "/bin/sh -c")
    setup.check_compiler()


def test_without_a_compiler_on_request(setup, tmp_path, monkeypatch):
    """Nothing is compiled, and `cmslap info` will know why."""
    monkeypatch.setenv("CMSLAP_CPU", "0")
    command = build_command(setup, tmp_path)
    command.run()
    command.build_extensions()
    notes = {path.name: path.read_text() for path in (tmp_path / "lib" / "cmslap").iterdir()}
    assert notes.keys() == {"_C.txt", "_CUDA.txt"}
    assert notes["_C.txt"] == "it was left out by CMSLAP_CPU=0\n"
