"""The same build on a Ray cluster.

``connection`` reaches a cluster, ``tasks`` is what runs on its nodes, ``executor`` gives them the
units of a build. See ``docs/scale.md``.
"""
