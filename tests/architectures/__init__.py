"""Models of many architectures for the tests of types, plans and whole files.

Three kinds, the first two as GGUF:

* `published.HEADERS`: headers at published depth and width, with a hole where the weights would be.
  ``sparse_gguf(path, header(name))`` writes one in milliseconds, whatever its size; nothing of it
  takes room on the disk. For rules that ask for depth, width, experts and heads.

* `small.SMALL`: whole ones of at most two million weights, made by transformers with random weights
  and converted by llama.cpp's converter. `ggufs.small_ggufs(tmp_path_factory)` gives
  ``{name: GGUF}``, made once per session; `ggufs.make_checkpoint(name, folder)` and
  `ggufs.make_gguf(name, folder)` make one of them elsewhere. A line is added by adding an entry.

* `stored.STORED`: checkpoints in the forms in which they are published: eight and four bits, layers
  of prediction, vision and audio, shards and pickles, code. `ggufs` has
  ``stored_checkpoints(factory, names)`` for their folders,
  ``stored_ggufs(factory, names, outtype)`` for what the converter makes of them, with
  ``mmproj=True`` for projectors, and ``small_checkpoints`` for the folders of `SMALL`.
  `unpack.weights(folder)` has the values, by a reading of our own. ``refused`` says which of
  them the converter does not read, and why.

`dry_run.dry_run(file, "Q4_K_M", imatrix)` is the oracle for types: ``{tensor name: type}`` as
``llama-quantize --dry-run`` has them, in its order. `dry_run.FILE_TYPES` are all that it offers.

    from tests.architectures.dry_run import FILE_TYPES, dry_run, imatrix_of_nothing
    from tests.architectures.published import HEADERS, header
    from tests.architectures.sparse import sparse_gguf

    file = sparse_gguf(tmp_path / "model.gguf", header("llama-70b"))
    assert dry_run(file, "Q4_K_M")["output.weight"] == "Q6_K"
    assert dry_run(file, "IQ2_XXS", imatrix_of_nothing(tmp_path / "any.gguf"))
"""
