import numpy as np
import pytest
import torch
from refusing import refused

from cmslap import VDSR, LapSRN, MSLapSRN, load_model

scipy_io = pytest.importorskip("scipy.io")


def matlab(kernel):
    """A PyTorch kernel as MATLAB stores it: [height, width, in, out], trailing axes of length 1 dropped."""
    array = kernel.detach().permute(2, 3, 1, 0).numpy()
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def layer(name, kind, inputs=(), **block):
    return {"name": name, "type": f"dagnn.{kind}", "inputs": np.array(inputs, dtype=object), "block": block}


def conv(name, weight, bias):
    return {f"{name}_f": matlab(weight), f"{name}_b": bias.detach().numpy()[None]}


def ms_lapsrn(model):
    """The parameters and the layers that matter, named as the official models name them."""
    parameters = conv("input_conv", model.conv_in.weight, model.conv_in.bias)
    for d in range(model.depth):
        kernel = model.embedding_weight.chunk(model.depth)[d]
        parameters |= conv(f"conv{d + 1}", kernel, model.embedding_bias[d])
    parameters |= conv("upconv", model.upsample_weight, model.upsample_bias)
    parameters |= conv("residual_conv", model.conv_res.weight, model.conv_res.bias)
    parameters["img_up_f"] = matlab(model.image_weight)
    layers, previous = [], "x4SR_input_conv"
    for r in range(1, model.recursions + 1):
        name = f"x4SR_level1_R{r}"
        layers.append(layer(f"{name}_relu1", "ReLU", [previous], leak=0.2))
        layers.append(layer(f"{name}_conv1", "Conv", [f"{name}_relu1"]))
        layers.append(layer(f"{name}_output", "Sum", [f"{name}_conv{model.depth}", "x4SR_input_conv"]))
        previous = f"{name}_output"
    return parameters, layers


def lapsrn(model):
    parameters = conv("input_conv", model.conv_in.weight, model.conv_in.bias)
    for index, level in enumerate(model.levels):
        name = f"level{len(model.levels) - index}"
        for d, convolution in enumerate(level.convs):
            parameters |= conv(f"{name}_conv{d + 1}", convolution.weight, convolution.bias)
        parameters |= conv(f"{name}_upconv", level.upsample_weight, level.upsample_bias)
        parameters |= conv(f"{name}_residual_conv", level.conv_res.weight, level.conv_res.bias)
        parameters[f"{name}_img_up_f"] = matlab(level.image_weight)
    return parameters, [layer("input_conv", "Conv", ["LR"]), layer("input_relu", "ReLU", ["input_conv"], leak=0.2)]


def vdsr(model):
    convolutions = [
        (model.conv_in.weight, model.conv_in.bias),
        *zip(model.middle_weight.chunk(model.depth - 2), model.middle_bias, strict=True),
        (model.conv_out.weight, model.conv_out.bias),
    ]
    cells = {"weight": np.empty(model.depth, object), "bias": np.empty(model.depth, object)}
    for layer_number, (kernel, bias) in enumerate(convolutions):
        cells["weight"][layer_number], cells["bias"][layer_number] = matlab(kernel), bias.detach().numpy()[:, None]
    return cells


def save(path, parameters, layers):
    records = [{"name": name, "value": value} for name, value in parameters.items()]
    scipy_io.savemat(path, {"net": {"params": records, "layers": layers}})
    return path


@pytest.fixture
def model():
    model = MSLapSRN(scale=4, depth=3, recursions=2, channels=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_ms_lapsrn(model, same, tmp_path):
    loaded = load_model(save(tmp_path / "model.mat", *ms_lapsrn(model)))
    assert loaded.config() == model.config()
    assert same(model, loaded)


def test_lapsrn_has_its_coarsest_level_last(same, tmp_path):
    model = LapSRN(scale=4, depth=2, channels=4)
    loaded = load_model(save(tmp_path / "model.mat", *lapsrn(model)))
    assert loaded.config() == model.config()
    assert same(model, loaded)


def test_vdsr(same, tmp_path):
    model = VDSR(depth=5, channels=6)
    scipy_io.savemat(tmp_path / "model.mat", {"model": vdsr(model)})
    loaded = load_model(tmp_path / "model.mat")
    assert loaded.config() == model.config()
    assert same(model, loaded)


def test_vdsr_with_a_misshapen_kernel(tmp_path):
    cells = vdsr(VDSR(depth=5, channels=6))
    cells["weight"][2] = np.zeros((3, 3, 6, 5), np.float32)
    scipy_io.savemat(tmp_path / "model.mat", {"model": cells})
    refused(tmp_path / "model.mat", "'conv3_f' has shape [3, 3, 6, 5], expected [3, 3, 6, 6]")


@pytest.mark.parametrize("model", [{"weight": 0, "bias": 0}, {"bias": 0}, 0])
def test_a_struct_that_is_no_vdsr(model, tmp_path):
    scipy_io.savemat(tmp_path / "model.mat", {"model": model})
    refused(tmp_path / "model.mat", "VDSR")


@pytest.mark.parametrize(
    ("file", "config", "parameters"),
    [
        ("MSLapSRN_D5R8.mat", {"scale": 8, "depth": 5, "recursions": 8, "channels": 64}, 222_801),
        ("LapSRN_x4.mat", {"scale": 4, "depth": 10, "channels": 64}, 814_242),
        ("VDSR_Official.mat", {"depth": 20, "channels": 64}, 665_921),
    ],
)
def test_official_models(file, config, parameters, official_weights):
    model = load_model(official_weights / file)
    assert model.config() == config
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["conv2_f", "conv3_b", "upconv_b", "residual_conv_f", "input_conv_b"])
def test_a_missing_parameter_is_named(name, model, tmp_path):
    parameters, layers = ms_lapsrn(model)
    del parameters[name]
    refused(save(tmp_path / "model.mat", parameters, layers), f"'{name}'", "is missing")


def test_a_misshapen_parameter_is_named_with_both_shapes(model, tmp_path):
    parameters, layers = ms_lapsrn(model)
    parameters["upconv_f"] = np.zeros((4, 4, 6, 6), np.float32)
    refused(
        save(tmp_path / "model.mat", parameters, layers), "'upconv_f' has shape [4, 4, 6, 6], expected [3, 3, 6, 6]"
    )


def test_an_unexpected_parameter_is_named(model, tmp_path):
    parameters, layers = ms_lapsrn(model)
    parameters["gate_f"] = np.zeros((3, 3), np.float32)
    refused(save(tmp_path / "model.mat", parameters, layers), "unexpected tensor 'gate_f'")


def test_a_parameter_of_text(model, tmp_path):
    parameters, layers = ms_lapsrn(model)
    parameters["conv1_b"] = "zero"
    refused(save(tmp_path / "model.mat", parameters, layers), "'conv1_b' must be numbers")


def test_other_skips_are_refused(model, tmp_path):
    parameters, layers = ms_lapsrn(model)
    layers[-1]["inputs"] = np.array(["x4SR_level1_R2_conv3", "x4SR_level1_R1_output"], dtype=object)
    refused(save(tmp_path / "model.mat", parameters, layers), "source skips", "x4SR_level1_R1_output")
    refused(save(tmp_path / "model.mat", parameters, layers[:-1]), "source skips", "nothing")


def test_other_slopes_are_refused(model, tmp_path):
    parameters, layers = ms_lapsrn(model)
    layers[0]["block"] = {"leak": 0.1}
    refused(save(tmp_path / "model.mat", parameters, layers), "'x4SR_level1_R1_relu1' has slope 0.1")


def test_no_recursions(model, tmp_path):
    parameters, layers = ms_lapsrn(model)
    layers = [layer for layer in layers if "conv1" not in layer["name"]]
    refused(save(tmp_path / "model.mat", parameters, layers), "no layer")


def test_another_network(tmp_path):
    parameters = {"fc_f": np.zeros((3, 3), np.float32), "fc_b": np.zeros(3, np.float32)}
    refused(save(tmp_path / "model.mat", parameters, [layer("fc", "Conv"), layer("out", "Sum")]), "neither LapSRN")


def test_no_network(tmp_path):
    scipy_io.savemat(tmp_path / "data.mat", {"x": np.zeros(3)})
    refused(tmp_path / "data.mat", "data.mat: no MatConvNet DagNN network")


def test_version_7_3_is_refused(tmp_path):
    path = tmp_path / "model.mat"  # the header of such a file; an HDF5 file follows it
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n".rjust(392) + bytes(64))
    refused(path, "7.3 is not supported", "-v7")


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_damaged_files(content, model, tmp_path):
    path = save(tmp_path / "model.mat", *ms_lapsrn(model))
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    refused(path, "model.mat: not a MATLAB file")
