"""Which layers of a model attend to its cells, and which have a recurrent state: as llama.cpp decides it, from the metadata.

Attention has keys and values for each token; a recurrent layer (Mamba, RWKV, a gated delta net, a short convolution) has one
state for each sequence, however long that is. Hybrid models have layers of both kinds, and say so in different ways: by an array
of KV heads with zeros, a list, an interval, or nothing but the architecture's name."""

from poise.llama.files.gguf import GgufHeader

FULL_ATTENTION_INTERVAL = 4
"""llama.cpp's default for models whose layers attend at an interval."""
_WITHOUT_ATTENTION = ("mamba", "rwkv", "arwkv")
_WITH_BOTH = ("falcon-h1",)


def layers(header: GgufHeader) -> list[tuple[int, bool]]:
    """For each layer that counts, its KV heads and whether it has a recurrent state."""
    n_layers, architecture = header.number("block_count"), header.architecture
    n_heads = max(1, header.number("attention.head_count", 1))
    heads = header.per_layer("attention.head_count_kv", n_layers) or [n_heads] * n_layers
    if not state_elements(header):
        shared = header.number("attention.shared_kv_layers")  # the last ones use the cells of others
        return [(n, False) for n in heads[: max(0, len(heads) - shared)]]
    if architecture.startswith(_WITHOUT_ATTENTION):
        return [(0, True)] * n_layers
    if architecture in _WITH_BOTH:
        return [(n, True) for n in heads]
    if marked := header.per_layer("attention.recurrent_layers", n_layers):
        is_recurrent = [bool(mark) for mark in marked]
    elif 0 in heads:
        is_recurrent = [n == 0 for n in heads]
        if architecture.startswith("nemotron_h"):  # some of its layers have neither, but a feed-forward net
            feed_forward = header.per_layer("feed_forward_length", n_layers)
            is_recurrent = [n == 0 and not width for n, width in zip(heads, feed_forward, strict=False)]
    else:
        interval = header.number("full_attention_interval", FULL_ATTENTION_INTERVAL) or n_layers + 1
        is_recurrent = [(i + 1) % interval != 0 for i in range(n_layers)]
    return [(0 if recurrent else n, recurrent) for n, recurrent in zip(heads, is_recurrent, strict=False)]


def state_elements(header: GgufHeader) -> int:
    """Numbers in one recurrent layer's state of one sequence: its last inputs (the convolution's), and what it remembers."""
    width = header.number("embedding_length")
    if head := header.number("wkv.head_size"):  # RWKV
        return width * (header.number("token_shift_count", 2) + head)
    if n_inputs := header.number("shortconv.l_cache"):  # LFM2
        return width * (n_inputs - 1)
    kernel = header.number("ssm.conv_kernel")
    if head := header.number("kda.head_dim"):  # Kimi's delta attention: a convolution each for queries, keys and values
        return header.number("attention.head_count", 1) * head * (3 * (kernel - 1 if kernel else 3) + head)
    inner, state, groups = (header.number(f"ssm.{name}") for name in ("inner_size", "state_size", "group_count"))
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner
