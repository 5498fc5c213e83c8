"""GIRL-DETR, a detection transformer for video moment retrieval.

`model.GirlDetr` is built from small modules: `projections` (input projections), `refinement` (feature
refinement), `cmi` (Cross-Modal Interaction), `encoder`, `tgg` (Text-Guided Gating), `decoder` (anchor
references), `head` (class, span, IoU: all that reinforcement learning may touch) and `branches` (saliency,
contrastive). `losses`, `matcher` and `schedules` train it, `inference` turns its output into windows,
`checkpoint` reads and writes weights.

Two behaviours, chosen by `config.GirlDetrConfig`. ``official`` equals the published implementation to the
tensor, faults included, so that its checkpoints give its numbers. ``repaired``, the default for new training,
sets the faults right. Each repair has a name, and any subset can be made (``repairs=frozenset({...})``);
`config.REPAIRS` says what each one does:

* predictions that do not depend on the rest of the batch: `padded_similarity`, `cmi_masks`,
  `sentence_padding`, `moment_length`, `moment_clamp`;
* blocks that do something: `word_clip_attention`, `cmi_residual`, `cmi_text_norm`, `query_content`,
  `gate_tokens`, `unused_parameters`, `cmi_pre_norm`;
* numbers that stay sound: `anchor_width_floor`, `anchor_init`;
* losses that do not depend on the batch: `negative_refinement`, `negative_text_positions`,
  `loss_means`, `loss_padding`, `constant_hard_weight`;
* training steps that take less time: `half_negatives`, `shared_dropout`.

One part is not the paper's: with ``query_selection=True`` the decoder starts from spans scored by the
encoded clips, instead of anchors that are the same for every video (`query_selection`). From a thousand
training videos that is worth nine points of R1@0.7 (benchmarks/RESULTS_EARLIER.md). It is off by default and
works with either behaviour.

``official`` behaviour drops each number by itself, as published. With `shared_dropout` a feed-forward network
drops the same inner channels in the whole batch and need not compute them, a head of attention the same keys
for all queries of a sample, and refinement the same channels of a sentence or token for all clips; input
projections and CMI drop one operation earlier. Captions were learnt no worse.

Both behaviours work on any device and at any width, and leave out at inference what only the losses need.
"""
