"""Which terms of a plain ``log_joint`` read which entries of which latent.

In the order in which a log joint passes through them:

- ``split``, with ``split_plan`` and ``split_inline``: the additive terms, as unreduced arrays;
- ``analysis`` and ``rules/``: forward over those arrays' program, which latent entries every entry
  of every array reads, as ``pointers``; one rule per class of primitives, unknown ones read all;
- ``plan``, ``colouring`` and ``patterns``: pointers become sums over the blocks that are read, and
  colours of entries that may change together;
- ``blankets`` and ``local_values``: what estimators call, kept per function and shapes by
  ``programs``;
- ``check`` and ``replacements``: the exact check of all that against the log joint itself;
- ``explain``, with ``findings``, ``advice``, ``widening``, ``describe`` and ``draws``: the same
  for people;
- ``origin`` and ``failing``: the operation, and the term, that NaN or infinity comes from;
- ``rows`` and ``row_reads``: the analysis with data rows in the place of latents, for N/B scaling.
"""
