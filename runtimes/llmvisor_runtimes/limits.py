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

draft_tokens_first = 4
"""Tokens that the first guess of a sequence has at most."""

draft_tokens_min = 2

draft_tokens_max = 63
"""Tokens guessed ahead for one sequence in one step: with the one before them a tile of llama.cpp's on CPUs."""

draft_model_tokens_max = 16
"""The same where a draft model computes each of them."""

sample_seconds_max = 0.05
"""After so long the rest of a sequence's guesses is not looked at in this step: others wait."""

draft_misses_max = 6
"""Each wrong guess in a row doubles the tokens until the next, so many times."""

draft_probability_min = 0.6
"""A draft model's guess that it finds less likely is not tried."""

lookup_ngram_tokens = (8, 4, 3)
"""How many tokens have to be the same for a guess, tried in this order."""

lookup_places_max = 4
"""Places that are compared, the latest."""

lookup_likeness_tokens_max = 32

lookup_trust = 2
"""A place that is the same for n tokens is copied for so many times n."""

lookup_window_tokens = 65_536
"""How far back they are looked for: a fraction of a millisecond."""

# -- encoders

encoding_lookahead_inputs = 1024
"""So far ahead of what it has handed out a job's inputs are computed: what it may hold in results."""

encoding_interactive_run_max = 8
"""After so many interactive batches in a row a bulk batch that waits gets its turn."""

# -- tool calls

tool_call_held_chars_max = 64 * 1024
"""Text that is held back until it is certain whether it is a tool call; a longer one is text."""

white_space_held_chars_max = 256
"""White space that waits for what follows it: before a call it is left out."""

tool_name_chars_max = 256
"""The longest name of a tool in what a model writes."""

tool_calls_required_max = 8
"""Calls that a grammar allows in one answer: a small model would go on for ever."""

# -- grammars that texts are held to

grammar_source_bytes_max = 256 * 1024
"""The longest schema, regular expression or grammar."""

grammar_texts_max = 16 * 1024
"""Texts of one `choice`."""

gbnf_rules_max = 512
"""Rules of a GBNF grammar; converting takes time that grows with their square."""

schema_depth_max = 64
"""How deep one schema stands in another, references not followed."""

schema_nodes_max = 8192
"""Schemas within one schema, itself included: 4,000 properties compile in a second."""

schema_references_max = 256
"""Different places that the `$ref`s of one schema name."""

schema_patterns_joined_max = 8
"""Patterns that one text has to fit at once: finding out whether any does takes time that doubles with each."""

multiple_states_max = 20_000
"""States of the automata that tell multiples of numbers, 1 kB and 5 us each; an integer has as many as it is large."""

multiple_digits_max = 18
"""Digits of a number that others are multiples of, on each side of the point."""

grammars_cached_max = 32
"""Compiled grammars that are kept."""

grammar_symbols_max = 200_000
"""Symbols of a compiled grammar."""

grammar_initial_fuel_max = 1_000_000
"""llguidance's measure of what building the lexer may cost: about 20 ms."""

grammar_step_fuel_max = 200_000
"""The same for the mask of one token: about 15 ms."""

grammar_step_items_max = 20_000
"""States of the parser within one token: about 1 ms. A schema of 4,000 properties needs over 5,000."""

grammar_row_items_max = 500
"""Branches that the parser follows at once. Where they come of a grammar that can be read in many ways, the time for a
token grows with the cube of this: about 20 ms; `anyOf` with 300 schemas is within it."""

grammar_lexer_states_max = 20_000
"""States of the lexer, made as they are met: 2 kB each. A text that needs more fails."""

# -- the MLX engine

model_json_bytes_max = 16 * 1024 * 1024
"""The longest of a model folder's small JSON files (`config.json` and the like)."""

encoder_sequences_max = 64
"""Texts that llama.cpp encodes in one batch."""

encoder_bulk_seconds = 0.5
"""How long a batch of the bulk lane should take: so long an interactive request waits for it at most."""

encoder_bulk_tokens_min = 64
"""Tokens of such a batch on a machine that is too slow for that."""

encoder_watched_tokens_min = 2048
"""From so many tokens on a batch may take long, and tells how far it is."""

encoder_logits_bytes_told = 1024 * 1024 * 1024
"""A model that may take more than this for one text says so when it is loaded."""

embeddings_frame_bytes = 4 * 1024 * 1024
"""Vectors in one frame, where there are more than one."""

encoding_interactive_seconds = 1.0
"""How long a batch of the interactive lane may take, by the pace measured so far."""

encoding_bulk_seconds = 0.5
"""The same for the bulk lane while nobody else is there."""

encoding_bulk_beside_interactive_seconds = 0.03
"""The same while interactive requests come: each may have to wait for such a batch to end."""

encoding_interactive_memory_seconds = 5.0
"""For so long after an interactive request the next one is expected."""

encoding_batch_tokens_min = 32
"""A batch may have so many tokens whatever the pace: smaller ones cost more than they save."""

encoding_pace_tokens_min = 128
"""Batches of fewer tokens say nothing about the pace."""

encoding_pace_smoothing = 0.2
"""The weight of the newest batch in the pace."""

encoding_batch_tokens_max = 16 * 1024
"""Tokens of one forward pass on a CPU; more brings nothing but memory."""

encoding_batch_tokens_gpu_max = 128 * 1024
"""The same on a GPU."""

encoding_padding_free_tokens = 32
"""So much padding in a batch costs less than another forward pass."""

encoder_slots = 256
"""Requests that are in a worker at once: what waits there can be computed together."""

bytes_per_mb = 1024 * 1024
"""What options that count in `_mb` mean by one."""

prepared_piece_texts_max = 64
"""Texts of the bulk lane that are tokenized before others get their turn."""

prepared_piece_chars_max = 32 * 1024
"""Their length, where there is more than one: about 20 ms."""

tokenize_slice_texts = 256
"""Texts that are tokenized in one call."""

adapter_turn_steps = 4
"""Steps in a row for the sequences of one set of adapters while those of another wait: changing takes milliseconds."""

state_save_seconds_max = 4.0
"""How long a worker that closes may write its cache to a file, well within `close_seconds_max`."""

state_file_bytes_max = 1024 * 1024 * 1024
"""The longest such file."""

state_sequences_max = 64
"""Sequences in it."""

# -- images and sounds

media_turn_seconds_min = 0.02
"""How long an image is encoded, at least, between two steps of those that stream."""

media_turn_seconds_max = 0.4
"""The same at most: the gap they see."""

media_poll_seconds = 0.01
"""How often the engine looks whether an image is encoded while it has nothing else to do."""

media_digests_max = 4096
"""Images and sounds, of late, that are known again."""

sound_seconds_max = 1800.0
"""The longest sound: about 200 MB once it is unpacked."""

sounds_seconds_max = 3600.0
"""Those of one conversation together."""

sound_samples_min = 160
"""The shortest: 10 ms. libmtmd takes a sound of one sample for a mistake of its caller's, and ends the process."""

# -- what a worker may do

processes_spare_max = 4096
"""A worker may start so many threads and processes more than the machine has when it begins."""

model_links_max = 1000
"""Files of a model's folder that are looked at for symbolic links."""
