"""Makes the checkpoint in this folder: tiny, with the variables of XLNet's released code, written by TensorFlow 2.21.

    pip install tensorflow-cpu && python tests/golden/tensorflow/make_checkpoint.py tests/golden/tensorflow

The tests compare what our reader finds with :func:`variables`, which needs no TensorFlow.
"""

import sys

import numpy as np

WIDTH, HEADS, HEAD, INNER, LAYERS, VOCABULARY = 16, 2, 8, 32, 2, 46


def shapes():
    """Name and shape of each variable, as ``modeling.py`` of the released code makes them."""
    for bias in ("r_w_bias", "r_r_bias", "r_s_bias"):
        yield f"model/transformer/{bias}", (LAYERS, HEADS, HEAD)
    yield "model/transformer/seg_embed", (LAYERS, 2, HEADS, HEAD)
    yield "model/transformer/mask_emb/mask_emb", (1, 1, WIDTH)
    yield "model/transformer/word_embedding/lookup_table", (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        scope = f"model/transformer/layer_{layer}"
        for projection in "qkvor":
            yield f"{scope}/rel_attn/{projection}/kernel", (WIDTH, HEADS, HEAD)
        for block in ("rel_attn", "ff"):
            yield f"{scope}/{block}/LayerNorm/gamma", (WIDTH,)
            yield f"{scope}/{block}/LayerNorm/beta", (WIDTH,)
        yield f"{scope}/ff/layer_1/kernel", (WIDTH, INNER)
        yield f"{scope}/ff/layer_1/bias", (INNER,)
        yield f"{scope}/ff/layer_2/kernel", (INNER, WIDTH)
        yield f"{scope}/ff/layer_2/bias", (WIDTH,)
    yield "model/lm_loss/bias", (VOCABULARY,)
    yield "model/transformer/layer_0/ff/layer_1/kernel/Adam", (WIDTH, INNER)  # an optimizer's, no weight


def variables():
    """Name and value of each variable: float32."""
    generator = np.random.default_rng(0)
    for name, shape in shapes():
        yield name, (0.3 * generator.standard_normal(shape)).astype(np.float32)


def main(folder):
    import tensorflow

    v1 = tensorflow.compat.v1
    v1.disable_eager_execution()
    for name, value in variables():
        v1.get_variable(name, initializer=value)
    v1.get_variable("global_step", initializer=np.int64(1234))
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, f"{folder}/xlnet_model.ckpt", write_meta_graph=False, write_state=False)


if __name__ == "__main__":
    main(sys.argv[1])
