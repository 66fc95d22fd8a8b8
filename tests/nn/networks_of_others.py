"""Small networks as people write them, without choices."""

import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Of ResNet-18."""

    def __init__(self, in_channels, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """Of ResNet-50, and with groups of ResNeXt."""

    def __init__(self, in_channels, channels, stride=1, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != 4 * channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels)
            )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, block, expansion, width=8, depths=(2, 2), num_classes=5, **options):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(block(channels, width * 2**i, 2 if i and not j else 1, **options))
                channels = expansion * width * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.num_stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        for i in range(self.num_stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18():
    return ResNet(BasicBlock, 1)


def resnet50(**options):
    return ResNet(Bottleneck, 4, **options)


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        scale = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(scale))))


class InvertedResidual(nn.Module):
    """Of MobileNetV2, with the squeeze-and-excitation of MobileNetV3."""

    def __init__(self, in_channels, out_channels, stride, expansion):
        super().__init__()
        hidden = in_channels * expansion
        self.is_residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)
            ),
            nn.Sequential(
                nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
                nn.BatchNorm2d(hidden),
                nn.Hardswish(),
            ),
            SqueezeExcite(hidden, hidden // 2),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x):
        return x + self.conv(x) if self.is_residual else self.conv(x)


def mobilenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        InvertedResidual(8, 12, 1, 2),
        InvertedResidual(12, 12, 1, 2),
        InvertedResidual(12, 16, 2, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 5),
    )


class UNet(nn.Module):
    """Concatenates what came down with what goes up; norms over groups, transposed convolutions."""

    def __init__(self, width=8):
        super().__init__()
        self.down1 = self._double(3, width)
        self.down2 = self._double(width, 2 * width)
        self.bottom = self._double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = self._double(4 * width, 2 * width)
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, padding=1))
        self.join1 = self._double(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _double(in_channels, channels):
        return nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        bottom = self.bottom(F.max_pool2d(two, 2))
        x = self.join2(torch.cat([self.up2(bottom), two], dim=1))
        return self.head(self.join1(torch.cat([one, self.up1(x)], dim=1)))


class DenseNet(nn.Module):
    """Each layer takes, through a norm, all that came before."""

    def __init__(self, growth=4, num_layers=3):
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(growth * (i + 1)) for i in range(num_layers)])
        self.convs = nn.ModuleList([nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(num_layers)])
        self.fc = nn.Linear(growth * (num_layers + 1) * 4, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


class ShuffleUnit(nn.Module):
    """Of ShuffleNetV2: splits channels in halves, and shuffles them."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1),
        )

    def forward(self, x):
        kept, taken = x.chunk(2, dim=1)
        x = torch.cat([kept, self.branch(taken)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), ShuffleUnit(8), ShuffleUnit(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


class GatedMlp(nn.Module):
    """One projection for value and gate, taken apart in halves."""

    def __init__(self, width=8, hidden=16):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.both = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))  # as of ConvNeXt

    def forward(self, x):
        value, gate = self.both(self.norm(x)).chunk(2, -1)
        return x + self.scale * self.out(value * F.silu(gate))


def gated_mlps():
    return nn.Sequential(nn.Linear(6, 8), GatedMlp(), GatedMlp(), nn.Linear(8, 3))


class Attention(nn.Module):
    """As in many vision transformers: one projection for queries, keys and values."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, -1))


class AttentionBlock(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, width=16, num_heads=4, depth=2):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.ModuleList([AttentionBlock(width, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ChannelsFirstNorm(nn.LayerNorm):
    """Of ConvNeXt: norms channels where they come first."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BiasedAttention(nn.Module):
    """Of Swin: adds a bias for each head and distance to what attention attends by."""

    def __init__(self, width=8, num_heads=2, num_tokens=16):
        super().__init__()
        self.head_dim = width // num_heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(2 * num_tokens - 1, num_heads))
        distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens) + num_tokens - 1
        self.register_buffer("distance", distance)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        bias = self.table[self.distance.view(-1)].view(t, t, -1).permute(2, 0, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return x + self.out(attended.transpose(1, 2).reshape(n, t, -1))


class WindowTransformer(nn.Module):
    def __init__(self, width=8, num_heads=2):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.norm = ChannelsFirstNorm(width)
        self.attention = BiasedAttention(width, num_heads)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.norm(self.patches(x)).flatten(2).transpose(1, 2)
        return self.head(self.attention(x).mean(1))
