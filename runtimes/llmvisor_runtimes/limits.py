"""Every bound of the worker side, unit last. The daemon's own stand in `llmvisor/limits.py`."""

frame_bytes_max = 64 * 1024 * 1024
"""A longer frame is a protocol violation, in both directions."""

tick_interval_seconds = 1.0
"""How often a worker reports its progress."""

tokenize_text_bytes_max = 16 * 1024 * 1024
"""The longest text that one tokenize call takes."""

retokenize_text_bytes_min = 2048
"""A text shorter than this is tokenized whole at once."""

retokenize_overlap_tokens = 32
"""So many tokens of a text seen before are made again, to see whether they come out the same."""

retokenize_margin_bytes = 64
"""So far before the place where two texts part their tokens may differ."""

retokenize_texts_max = 16
"""Texts that are remembered with their tokens."""

retokenize_bytes_max = 8 * 1024 * 1024
"""Length of all these texts together."""

template_output_bytes_max = 8 * 1024 * 1024
"""The longest prompt that a chat template may render to."""

template_seconds_max = 5.0
"""A chat template that renders for longer is stopped."""

stop_strings_max = 16
"""Stop strings of one request."""

choices_max = 16
"""`n` of one request."""

top_logprobs_max = 20
"""Alternatives reported for each token."""

pipe_read_bytes = 64 * 1024
"""One read of the command pipe: a pipe of Linux holds no more."""

load_progress_interval_seconds = 0.05
"""At most this often a load says how far it is, beside each new stage."""

close_seconds_max = 10.0
"""How long a worker that was told to close, and whose daemon is gone, may still take."""

thread_switch_interval_seconds = 0.0005
"""How long a thread of the worker keeps the interpreter while another waits. Python's own 5 ms would cost the engine as
much after each native call while a prompt is rendered."""

failpoints_characters_max = 4096
"""The longest text of failpoints that the mock takes."""

mock_step_seconds_max = 0.25
"""The mock does a step at least this often while it has work, so that a long delay is no hang."""

mock_cached_prompts_max = 16
"""Prompts whose prefixes the mock counts as cached."""

template_source_bytes_max = 128 * 1024
"""The longest chat template that is compiled."""

template_work_bytes_max = 256 * 1024 * 1024
"""Texts and lists that one rendering may make on its way, all together."""

template_integer_bits_max = 16 * 1024
"""The largest number that a chat template may compute with."""

# -- the llama.cpp engine

prefill_step_seconds = 0.4
"""How long a step may take for prompts while others stream: the gap they see."""

prefill_granule_tokens = 64
"""Prompt tokens that a step beside streams holds at least, and a whole multiple of.

llama.cpp's attention on CPUs works in tiles of 64 queries; with fewer, 2,000 tokens cost half as much again.
"""

scored_prompt_step_tokens = 64
"""Prompt tokens of one step where each one's logits are wanted: they take a whole vocabulary of floats each."""

admission_spare_tokens = 32
"""Cells left for each sequence under way when another is let in beside it."""

awaited_prefix_tokens_min = 32
"""A common beginning that somebody else is computing at the moment is waited for from this length on."""

abort_batch_tokens_min = 64
"""A batch of fewer tokens is over before aborting it would pay."""

delta_tokens_split = 4096
"""Tokens in one frame where a step is too long for one; with all alternatives about 3 MB."""

parked_gain_tokens_min = 32
"""A copy of a sequence, out of the context or back, has to save at least so many tokens."""

parked_share_min = 4
"""A sequence is copied out of the context only if so many of its size would fit: a huge copy holds up who streams."""
