"""Wrong arguments end in one line that names the argument, what came and what is accepted."""

import functools
import inspect
import pickle

import pytest
import torch
from calls import random_call

from cmslap import ops
from cmslap.errors import UserError
from cmslap.ops.operation import OPERATIONS

SIZES = {"N": 2, "C": 4, "Cin": 4, "Cout": 3, "D": 3, "R": 2, "H": 5, "W": 6}

MISTAKES = [
    ("conv2d_lrelu", {"x": torch.zeros(4, 5, 6)}, "x must be [N, Cin, H, W], got [4, 5, 6]"),
    ("conv2d_lrelu", {"x": None}, "x must be a tensor [N, Cin, H, W], got None"),
    ("lapsrn_level", {"u": None}, "u must be a tensor [N, C, H, W], got None"),
    ("conv2d_lrelu", {"x": [[1.0]]}, "x must be a tensor [N, Cin, H, W], got list"),
    (
        "conv2d_lrelu",
        {"weight": torch.zeros(3, 5, 3, 3)},
        "weight must be [Cout, Cin, 3, 3] with Cin=4, got",
    ),
    ("conv2d_lrelu", {"weight": torch.zeros(3, 4, 5, 5)}, "weight must be [Cout, Cin, 3, 3]"),
    ("conv2d_lrelu", {"bias": torch.zeros(4)}, "bias must be [Cout] with Cout=3, got [4]"),
    ("conv2d_lrelu", {"skip": torch.zeros(2, 3, 5, 5)}, "skip must be [N, Cout, H, W] with N=2, Cout=3, H=5, W=6"),
    ("conv2d_lrelu", {"x": torch.zeros(0, 4, 5, 6)}, "x must have at least one element, got [0, 4, 5, 6]"),
    ("conv2d_lrelu", {"x": torch.zeros(2, 4, 5, 6, dtype=torch.int64)}, "x must be float32"),
    (
        "conv2d_lrelu",
        {"weight": torch.zeros(3, 4, 3, 3, dtype=torch.float64)},
        "weight must be float32 as x is",
    ),
    ("conv2d_lrelu", {"bias": torch.zeros(3, device="meta")}, "bias must be on cpu as x is, got meta"),
    ("conv2d_lrelu", {"negative_slope": -0.1}, "negative_slope must be a number of at least 0, got -0.1"),
    ("conv2d_lrelu", {"negative_slope": float("nan")}, "negative_slope must be a number of at least 0, got nan"),
    ("conv2d_lrelu", {"negative_slope": "0.2"}, "negative_slope must be a number of at least 0, got '0.2'"),
    ("recursive_embedding", {"u": torch.zeros(2, 5, 5, 6)}, "weights must be [D, C, C, 3, 3] with C=5"),
    ("recursive_embedding", {"biases": torch.zeros(2, 4)}, "biases must be [D, C] with D=3, C=4, got [2, 4]"),
    ("recursive_embedding", {"recursions": 0}, "recursions must be an integer of at least 1, got 0"),
    ("recursive_embedding", {"recursions": 1.5}, "recursions must be an integer of at least 1, got 1.5"),
    ("recursive_embedding", {"weights": []}, "weights must be one tensor or a sequence of tensors of one shape"),
    ("recursive_embedding", {"biases": [torch.zeros(4), torch.zeros(3)]}, "biases must be one tensor or a sequence"),
    ("tied_conv_transpose2d", {"weight": torch.zeros(4, 3, 3, 3)}, "weight must be [Cout, Cin, 3, 3] with Cout=3"),
    ("tied_conv_transpose2d", {"bias": torch.zeros(3)}, "bias must be [Cin] with Cin=4, got [3]"),
    ("lapsrn_level", {"shared_conv": 4, "upsample_weight": None}, "shared_conv must be an integer from 1 to 3, got 4"),
    ("lapsrn_level", {"shared_conv": 0, "upsample_weight": None}, "shared_conv must be an integer from 1 to 3, got 0"),
    (
        "lapsrn_level",
        {"shared_conv": True, "upsample_weight": None},
        "shared_conv must be an integer from 1",
    ),
    ("lapsrn_level", {"shared_conv": None, "upsample_weight": None}, "exactly one of shared_conv and upsample_weight"),
    ("lapsrn_level", {"shared_conv": 1, "upsample_weight": torch.zeros(4, 4, 3, 3)}, "must be given, got both"),
    ("lapsrn_level", {"upsample_bias": torch.zeros(3)}, "upsample_bias must be [C] with C=4, got [3]"),
    (
        "residual_head",
        {"f": torch.zeros(2, 4, 5, 6)},
        "f must be [N, C, 2H, 2W] with N=2, 2H=10, 2W=12",
    ),
    ("residual_head", {"image": torch.zeros(2, 3, 5, 6)}, "image must be [N, 1, H, W], got [2, 3, 5, 6]"),
    ("residual_head", {"residual_weight": torch.zeros(1, 3, 3, 3)}, "residual_weight must be [1, C, 3, 3] with C=4"),
    ("residual_head", {"image_weight": torch.zeros(1, 1, 3, 3)}, "image_weight must be [1, 1, 4, 4], got [1, 1, 3, 3]"),
]


@pytest.mark.parametrize(("name", "change", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistake(name, change, message):
    arguments = {**random_call(name, **SIZES), **change}
    with pytest.raises(ops.ArgumentError) as error:
        getattr(ops, name)(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((), {}, "conv2d_lrelu() missing 2 required positional arguments: 'x' and 'weight'"),
        ((1, 2, 3, 4, 5, 6), {}, "conv2d_lrelu() takes from 2 to 5 positional arguments but 6 were given"),
        ((1, 2), {"x": 3}, "conv2d_lrelu() got multiple values for argument 'x'"),
        ((1, 2), {"slope": 0.2}, "conv2d_lrelu() got an unexpected keyword argument 'slope'"),
    ],
)
@pytest.mark.parametrize("call", [ops.conv2d_lrelu, functools.partial(ops.explain, "conv2d_lrelu")])
def test_arguments_there_is_no_place_for(args, options, message, call):
    with pytest.raises(TypeError) as error:
        call(*args, **options)
    assert str(error.value) == message


def test_operations_are_documented_and_pickled_as_functions():
    signature = inspect.signature(ops.lapsrn_level)
    assert list(signature.parameters) == list(OPERATIONS["lapsrn_level"].arguments)
    assert "N C 2H 2W" in signature.return_annotation
    assert "upsample_weight" in ops.lapsrn_level.__doc__
    assert pickle.loads(pickle.dumps(ops.lapsrn_level)) is ops.lapsrn_level
