import torch


def randomised(network, **arguments):
    """A network of which every parameter matters: biases are not zero, nor are the last kernels small. In float64."""
    model = network(**arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3 if name.endswith("bias") else (1 / parameter[0].numel()) ** 0.5)
    return model.double()
