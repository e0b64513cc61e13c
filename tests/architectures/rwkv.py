"""Shapes of RWKV checkpoints, of which transformers knows no class, in PyTorch's order."""

Shapes = dict[str, tuple[int, ...]]

HIDDEN, WIDE, HEAD, LAYERS = 256, 512, 64, 2


def rwkv6(n_tokens: int) -> Shapes:
    """RWKV-6 as it is published for transformers."""
    shapes: Shapes = {
        "rwkv.embeddings.weight": (n_tokens, HIDDEN),
        "head.weight": (n_tokens, HIDDEN),
        **norm("rwkv.blocks.0.pre_ln"),
        **norm("rwkv.ln_out"),
    }
    for i in range(LAYERS):
        at = f"rwkv.blocks.{i}"
        shapes |= {**norm(f"{at}.ln1"), **norm(f"{at}.ln2"), **norm(f"{at}.attention.ln_x")}
        for part in "xwkvrg":
            shapes[f"{at}.attention.time_maa_{part}"] = (1, 1, HIDDEN)
        for part in ("key", "value", "receptance", "gate", "output"):
            shapes[f"{at}.attention.{part}.weight"] = (HIDDEN, HIDDEN)
        shapes |= {
            f"{at}.attention.time_maa_w1": (HIDDEN, 160),
            f"{at}.attention.time_maa_w2": (5, 32, HIDDEN),
            f"{at}.attention.time_decay": (1, 1, HIDDEN),
            f"{at}.attention.time_decay_w1": (HIDDEN, 64),
            f"{at}.attention.time_decay_w2": (64, HIDDEN),
            f"{at}.attention.time_faaaa": (HIDDEN // HEAD, HEAD),
            f"{at}.feed_forward.time_maa_k": (1, 1, HIDDEN),
            f"{at}.feed_forward.time_maa_r": (1, 1, HIDDEN),
            f"{at}.feed_forward.key.weight": (WIDE, HIDDEN),
            f"{at}.feed_forward.value.weight": (HIDDEN, WIDE),
            f"{at}.feed_forward.receptance.weight": (HIDDEN, HIDDEN),
        }
    return shapes


def rwkv7(n_tokens: int) -> Shapes:
    """RWKV-7, with the names of its authors."""
    shapes: Shapes = {
        "model.embeddings.weight": (n_tokens, HIDDEN),
        "head.weight": (n_tokens, HIDDEN),
        **norm("model.pre_ln"),
        **norm("model.ln_out"),
    }
    for i in range(LAYERS):
        at = f"model.blocks.{i}"
        shapes |= {**norm(f"{at}.ln1"), **norm(f"{at}.ln2"), **norm(f"{at}.attention.ln_x")}
        for part in "rwkvag":
            shapes[f"{at}.attention.x_{part}"] = (1, 1, HIDDEN)
        for part in ("key", "value", "receptance", "output"):
            shapes[f"{at}.attention.{part}.weight"] = (HIDDEN, HIDDEN)
        for part in "wavg":
            if part != "g":
                shapes[f"{at}.attention.{part}0"] = (1, 1, HIDDEN)
            shapes[f"{at}.attention.{part}1"] = (HIDDEN, 32)
            shapes[f"{at}.attention.{part}2"] = (32, HIDDEN)
        shapes |= {
            f"{at}.attention.k_k": (1, 1, HIDDEN),
            f"{at}.attention.k_a": (1, 1, HIDDEN),
            f"{at}.attention.r_k": (HIDDEN // HEAD, HEAD),
            f"{at}.feed_forward.x_k": (1, 1, HIDDEN),
            f"{at}.feed_forward.key.weight": (WIDE, HIDDEN),
            f"{at}.feed_forward.value.weight": (HIDDEN, WIDE),
        }
    return shapes


def norm(name: str) -> Shapes:
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
