"""Search spaces of language models like GPT-2, and GPT-2 itself."""

from __future__ import annotations

from torch import Tensor, nn

from supernet.checks import check_counts
from supernet.hub.transformer import Candidates, architecture_of, blocks_of, candidates_of, initialize
from supernet.nn import Attention, Embedding, LayerNorm, Linear, Parameter, ValueChoice
from supernet.nn.composed import Composed

__all__ = ["GPT", "GPT2_LARGE", "GPT2_MEDIUM", "GPT2_SMALL"]

# Those of HW-GPT-Bench (arXiv 2405.10299; configs/config_train of automl/HW-GPT-Bench), and one for small data.
SPACES: dict[str, Candidates] = {
    "micro": {"width": (64, 96, 128), "depth": (2, 3, 4), "heads": (1, 2), "mlp_ratio": (2, 3, 4)},
    "small": {"width": (192, 384, 768), "depth": (10, 11, 12), "heads": (4, 8, 12), "mlp_ratio": (2, 3, 4)},
    "medium": {"width": (256, 512, 1024), "depth": (22, 23, 24), "heads": (8, 12, 16), "mlp_ratio": (2, 3, 4)},
    "large": {"width": (320, 640, 1280), "depth": (34, 35, 36), "heads": (8, 16, 20), "mlp_ratio": (2, 3, 4)},
}

# Each the largest network of its space: gpt-2 as openai/gpt-2 published it.
GPT2_SMALL = architecture_of(768, [12] * 12, [4] * 12)
GPT2_MEDIUM = architecture_of(1024, [16] * 24, [4] * 24)
GPT2_LARGE = architecture_of(1280, [20] * 36, [4] * 36)


class GPT(Composed):
    """A search space of language models like GPT-2: width and depth, and heads and MLP of each block.

    `width` and `depth` are decided, and for each block `heads_{i}`, of 64 features each, and `mlp_ratio_{i}`, how many
    times as wide its MLP is. The table of words is the last projection, too.

    Departs from the paper (HW-GPT-Bench, arXiv 2405.10299, whose candidates these are): the network is GPT-2's, with a
    table of positions and blocks in which the MLP follows the attention, and layers have biases; the paper's space has
    these as a further choice, with about 1e12, 1e24 and 1e36 networks.

    Args:
        space: "small", "medium" or "large", as in the paper, whose largest networks are those of GPT-2; "micro", for
            small data; or candidates of your own, by "width", "depth", "heads" and "mlp_ratio". Default: "small".
        vocab_size: Number of words. Default: GPT-2's, 50257.
        context_length: Number of words that the network sees at once, at most. Default: 1024.
        head_dim: Number of features of a head. Default: 64.

    Raises:
        ChoiceError: There is no such space.

    >>> model = supernet.hub.GPT("micro", vocab_size=65, context_length=64)  # for a search on characters
    >>> SearchSpace(model).size == 3 * (6**2 + 6**3 + 6**4)
    True
    """

    def __init__(
        self,
        space: str | Candidates = "small",
        vocab_size: int = 50257,
        context_length: int = 1024,
        *,
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        check_counts(vocab_size=vocab_size, context_length=context_length, head_dim=head_dim)
        candidates = candidates_of(space, SPACES)
        width = ValueChoice(candidates["width"], label="width")
        self.embed, self.position = Embedding(vocab_size, width), Parameter((context_length, width))
        self.blocks = blocks_of(width, candidates, lambda heads: Attention(width, heads, head_dim, is_causal=True))
        self.norm, self.head = LayerNorm(width), Linear(width, vocab_size, bias=False)
        self.head.weight = self.embed.weight
        initialize(self, nn.init.normal_, self.position.weight)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits (N, L, vocab_size) of the word that follows each of `words` (N, L)."""
        x_NLC = self.embed(words) + self.position()[: words.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x_NLC)))
        return logits
