"""Models with choices of every kind, each with a batch: all spaces of the hub, and models of others made elastic."""

import torch
from tests.hub.small_spaces import SMALL
from tests.nn import networks_of_others as others
from torch import nn

from supernet import elastic
from supernet.hub import GPT, AutoFormer

IMAGES = {"num_classes": 3, "in_channels": 1, "image_size": 4, "patch_size": 2, "head_dim": 4}
OF_TRANSFORMERS = {"width": (8, 12), "depth": (1, 2), "heads": (1, 2), "mlp_ratio": (1, 1.5)}


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tokens(most):
    return torch.randint(0, most, (2, 6), generator=torch.Generator().manual_seed(0))


def made_elastic(model, choices=None, example=None, **options):
    return elastic(model, choices, example=example, **options), example


def transformer():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3))


def gpt2():
    from transformers.models.gpt2.modeling_gpt2 import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20, bos_token_id=0, eos_token_id=1, n_positions=8, n_embd=16, n_head=4, n_inner=64, n_layer=2
    )
    return made_elastic(
        GPT2LMHeadModel(config), {"transformer.h": {"depth": [1, 2]}, "*.attn": {"num_heads": [2, 4]}}, tokens(20)
    )


MODELS = {
    **{name: lambda make=make, shape=shape: (make(), images(*shape)) for name, (make, shape) in SMALL.items()},
    "AutoFormer": lambda: (AutoFormer(OF_TRANSFORMERS, **IMAGES), images(2, 1, 4, 4)),
    "GPT": lambda: (GPT(OF_TRANSFORMERS, vocab_size=11, context_length=6, head_dim=4), tokens(11)),
    "elastic ResNet-18": lambda: made_elastic(others.resnet18(), ratios=[0.5, 1], example=images(2, 3, 8, 8)),
    "elastic ResNet-50": lambda: made_elastic(others.resnet50(), ratios=[0.5, 1], example=images(2, 3, 8, 8)),
    "elastic MobileNet": lambda: made_elastic(others.mobilenet(), ratios=[0.5, 0.75, 1], example=images(2, 3, 16, 16)),
    "elastic UNet": lambda: made_elastic(others.UNet(), ratios=[0.5, 1], example=images(2, 3, 8, 8)),
    "elastic DenseNet": lambda: made_elastic(others.DenseNet(), ratios=[0.5, 1], example=images(2, 3, 8, 8)),
    "elastic ShuffleNet": lambda: made_elastic(others.shufflenet(), ratios=[0.5, 1], example=images(2, 3, 8, 8)),
    "elastic ViT": lambda: made_elastic(
        others.VisionTransformer(), {"blocks": {"depth": [1, 2]}, "*.attn": {"num_heads": [2, 4]}}, images(2, 3, 16, 16)
    ),
    "elastic windows": lambda: made_elastic(others.WindowTransformer(), ratios=[0.5, 1], example=images(2, 3, 16, 16)),
    "elastic encoder": lambda: made_elastic(transformer(), ratios=[0.5, 1], example=images(2, 6, 16)),
    "elastic GPT-2": gpt2,
}
