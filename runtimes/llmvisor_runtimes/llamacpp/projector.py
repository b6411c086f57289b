"""An mmproj file: what makes embeddings of images and sounds, on llama.cpp's libmtmd (tools/mtmd/mtmd.h).

Only `encode` takes long. `chunks` decodes and scales files, and may run in another thread at the same time.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.llamacpp.adapters import check_gguf
from llmvisor_runtimes.llamacpp.images import unpacks_wrong
from llmvisor_runtimes.llamacpp.log import LlamaLog
from llmvisor_runtimes.llamacpp.native import binding, llama_cpp
from llmvisor_runtimes.llamacpp.sounds import is_sound, sound_seconds
from llmvisor_runtimes.protocol import MEDIA_MARKER

Embeddings = NDArray[np.float32]
"""One row for each place of a chunk."""
_TEXT, _IMAGE = 0, 1
_NODES_PER_PIECE = 8
"""Nodes of a projector's graph that are computed in one go, about a third of a layer."""
_NO_PROGRAMS = b"/nonexistent"
"""Where libmtmd would find ffmpeg, to which it hands whatever it cannot decode itself."""

_mtmd: Any = None


class _Weights(Protocol):
    pointer: int
    log: LlamaLog

    def failure(self, what: str) -> LoadError: ...


class MediaChunk:
    """An image, a slice of one, or a piece of a sound, made ready to be encoded."""

    def __init__(self, pointer: int, owner: _Chunks, *, mrope: bool, non_causal: bool) -> None:
        mtmd = _mtmd
        self.pointer = pointer
        self._owner = owner
        """Keeps what `pointer` points into."""
        self.digest: bytes = mtmd.mtmd_input_chunk_get_id(pointer)
        """SHA-256 of the file, in hexadecimal."""
        self.length: int = mtmd.mtmd_input_chunk_get_n_tokens(pointer)
        """Places of the context."""
        self.positions: int = mtmd.mtmd_input_chunk_get_n_pos(pointer)
        """Positions that these take."""
        self.non_causal = non_causal
        """Its places look at each other, so they have to be computed at once."""
        self._mrope = mrope
        self._places: tuple[int, NDArray[np.int32]] | None = None
        """Those of the last start: a chunk that is computed in pieces asks for each."""

    def places(self, start: int) -> NDArray[np.int32]:
        """The positions of its places, one row for each dimension there is; the first place has position `start`."""
        if self._places is None or self._places[0] != start:
            self._places = start, self._placed(start)
        return self._places[1]

    def _placed(self, start: int) -> NDArray[np.int32]:
        ordered = np.arange(start, start + self.length, dtype=np.int32)
        if not self._mrope:
            return ordered[np.newaxis]
        image = _mtmd.mtmd_input_chunk_get_tokens_image(self.pointer)
        if not image:
            return np.tile(ordered, (4, 1))
        read = _mtmd.mtmd_image_tokens_get_decoder_pos
        found = [read(image, start, place) for place in range(self.length)]
        rows = [[one.t for one in found], [one.y for one in found], [one.x for one in found], [one.z for one in found]]
        return np.array(rows, dtype=np.int32)


class Chunks(NamedTuple):
    """A text with its media: runs of tokens and chunks, in order."""

    parts: list[list[int] | MediaChunk]


class _Chunks:
    """Frees a list of chunks once nothing points into it."""

    def __init__(self) -> None:
        self.pointer = _mtmd.mtmd_input_chunks_init()
        weakref.finalize(self, _mtmd.mtmd_input_chunks_free, self.pointer).atexit = False

    def __len__(self) -> int:
        return _mtmd.mtmd_input_chunks_size(self.pointer)

    def __getitem__(self, place: int) -> int:
        return _mtmd.mtmd_input_chunks_get(self.pointer, place)


class Projector:
    """A loaded mmproj file, beside the model whose embeddings it makes."""

    def __init__(
        self, weights: _Weights, path: str, *, threads: int, on_gpu: bool, between: Callable[[], bool] | None
    ) -> None:
        """`between` is called between the pieces of what `encode` computes, and ends it with False.

        Raises `LoadError`, for one whose embeddings are not of the model's size too.
        """
        self._reading = threading.Lock()
        what = f"the mmproj ({path})"
        file = Path(path).expanduser()
        check_gguf(file, what)
        mtmd = _library()
        mtmd.mtmd_helper_log_set(weights.log.callback, None)
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.n_threads = on_gpu, False, threads
        params.media_marker = MEDIA_MARKER.encode()
        self._callback = _EVAL_CALLBACK(_Pieces(between)) if between else None
        if self._callback is not None:
            kind: Any = type(cast("object", params.cb_eval))
            params.cb_eval = ctypes.cast(self._callback, kind)
        self._pointer = mtmd.mtmd_init_from_file(os.fsencode(file), weights.pointer, params)
        if not self._pointer:
            raise weights.failure(f"{what} cannot be used with this model")
        self.sees: bool = mtmd.mtmd_support_vision(self._pointer)
        self.hears: bool = mtmd.mtmd_support_audio(self._pointer)
        self.bytes = file.stat().st_size
        self._dimensions: int = llama_cpp.llama_model_n_embd_inp(weights.pointer)
        rate: int = mtmd.mtmd_get_audio_sample_rate(self._pointer)
        self._samples_max = int(rate * limits.sound_seconds_max)
        self._mrope: bool = mtmd.mtmd_decode_use_mrope(self._pointer)

    def chunks(self, text: str, files: Sequence[bytes]) -> Chunks:
        """A text with one marker for each file, as tokens and chunks. Raises `RequestError`."""
        _check_seconds(files)
        with self._reading, _Bitmaps() as bitmaps:
            if not self._pointer:
                raise RequestError("internal_error", "the model is being unloaded")
            for number, file in enumerate(files, 1):
                bitmaps.append(self._bitmap(file, number))
            return self._tokenized(text, bitmaps)

    def encode(self, chunk: MediaChunk) -> Embeddings | None:
        """The embeddings of a chunk; None where they could not be made. For one thread."""
        if _mtmd.mtmd_encode_chunk(self._pointer, chunk.pointer):
            return None
        floats = _mtmd.mtmd_get_output_embd(self._pointer)
        return np.ctypeslib.as_array(floats, shape=(chunk.length, self._dimensions)).copy()

    def close(self) -> None:
        """Free it, after what another thread may still read; nothing may be encoding."""
        with self._reading:
            if self._pointer:
                _mtmd.mtmd_free(self._pointer)
                self._pointer = None

    def _bitmap(self, file: bytes, number: int) -> int:
        sound = is_sound(file)
        if not (self.hears if sound else self.sees):
            able, unable = ("sees images", "hears no sounds") if sound else ("hears sounds", "sees no images")
            message = f"this model {able} but {unable}: its mmproj has no encoder for them"
            raise RequestError("unsupported_operation", f"messages: {message}", "messages")
        what = f"messages: {'sound' if sound else 'image'} {number} of the conversation"
        if sound and not 0 < sound_seconds(file) <= limits.sound_seconds_max:
            message = f"{what} cannot be read, or is longer than {limits.sound_seconds_max:.0f} seconds"
            raise RequestError("invalid_value", message, "messages")
        bitmap = None if unpacks_wrong(file) else self._decoded(file)
        if bitmap is None:
            kinds = "WAV, MP3 and FLAC" if sound else "PNG, JPEG, GIF and BMP"
            raise RequestError("invalid_value", f"{what} cannot be decoded ({kinds} can, if whole)", "messages")
        if sound and not limits.sound_samples_min <= (samples := self._samples(bitmap)) <= self._samples_max:
            _free_bitmap(bitmap)
            raise RequestError("invalid_value", f"{what} has {samples} samples, too few or too many", "messages")
        return bitmap

    def _decoded(self, file: bytes) -> int | None:
        options = _mtmd.mtmd_helper_init_opt_default()
        options.video_params.ffmpeg_bin_dir = _NO_PROGRAMS
        data = (ctypes.c_uint8 * len(file)).from_buffer_copy(file)
        made = _mtmd.mtmd_helper_bitmap_init_from_buf_wrapper(self._pointer, data, len(file), False, options)
        if made.video_ctx:
            _mtmd.mtmd_helper_video_free(made.video_ctx)
            _free_bitmap(made.bitmap)
            return None
        return made.bitmap or None

    def _samples(self, bitmap: int) -> int:
        return _mtmd.mtmd_bitmap_get_n_bytes(bitmap) // ctypes.sizeof(ctypes.c_float)

    def _tokenized(self, text: str, bitmaps: list[int]) -> Chunks:
        mtmd = _mtmd
        data = text.encode("utf-8", "replace")
        wanted = mtmd.mtmd_input_text(text=data, text_len=len(data), add_special=False, parse_special=True)
        pointers = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
        chunks = _Chunks()
        status = mtmd.mtmd_tokenize(self._pointer, chunks.pointer, ctypes.byref(wanted), pointers, len(bitmaps))
        if status:
            raise RequestError("invalid_value", "messages: the images or sounds cannot be made ready", "messages")
        return Chunks([self._part(chunks, chunks[place]) for place in range(len(chunks))])

    def _part(self, owner: _Chunks, pointer: int) -> list[int] | MediaChunk:
        mtmd = _mtmd
        if mtmd.mtmd_input_chunk_get_type(pointer) == _TEXT:
            count = ctypes.c_size_t(0)
            tokens = mtmd.mtmd_input_chunk_get_tokens_text(pointer, ctypes.byref(count))
            return list(tokens[: count.value])
        non_causal = mtmd.mtmd_decode_use_non_causal(self._pointer, pointer)
        return MediaChunk(pointer, owner, mrope=self._mrope, non_causal=non_causal)


class _Bitmaps(list[int]):
    """Decoded files, freed at the end of a `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pointer in self:
            _free_bitmap(pointer)


class _Pieces:
    """ggml's callback of a graph: asked of each node whether to stop after it, then told where it has."""

    def __init__(self, between: Callable[[], bool]) -> None:
        self._between = between
        self._asked = 0

    def __call__(self, _node: int, ask: bool, _data: int) -> bool:
        if not ask:
            return self._between()
        self._asked += 1
        return self._asked % _NODES_PER_PIECE == 0


_EVAL_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


def _check_seconds(files: Sequence[bytes]) -> None:
    """All are unpacked at once. Raises `RequestError`."""
    if sum(sound_seconds(file) for file in files if is_sound(file)) > limits.sounds_seconds_max:
        message = f"messages: the sounds are longer than {limits.sounds_seconds_max:.0f} seconds together"
        raise RequestError("invalid_value", message, "messages")


def _free_bitmap(pointer: int | None) -> None:
    if pointer:
        _mtmd.mtmd_bitmap_free(pointer)


def _library() -> Any:  # noqa: ANN401 - a module without types
    """llama_cpp's binding, imported with the first mmproj: most models have none."""
    global _mtmd  # noqa: PLW0603 - a module, imported once
    if _mtmd is None:
        _mtmd = binding("mtmd_cpp")
    return _mtmd
