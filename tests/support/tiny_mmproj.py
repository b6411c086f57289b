"""Tiny projectors of random weights beside the tiny models: images and sounds become embeddings in milliseconds."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from llmvisor_runtimes.protocol import MEDIA_MARKER, ChatMessage, ChatPrompt

Projector = Literal["janus_pro", "gemma3", "idefics3", "qwen2vl_merger", "ultravox"]
"""Of images in order, of images that see themselves as a whole, of images in slices with an overview, of images with
places in two dimensions, of sounds.
"""
SLICE_TOKENS = ("\n\n", "<fake_token_around_image>", "<global-img>")
"""What a model that sees slices has in its vocabulary."""

IMAGE_TOKENS = 16
"""Of one image; two texts around it come on top with some projectors."""
SOUND_TOKENS = 30
"""Of a sound of up to 30 seconds."""
_DIMS, _HEADS, _PATCH = 32, 2, 8
_STACK = 50


def write_tiny_mmproj(path: Path, projector: Projector = "janus_pro", *, dims: int = 64, seed: int = 7) -> Path:
    """Write a projector to a model of `dims` dimensions; the same seed gives the same file."""
    writer = gguf.GGUFWriter(path, "clip")
    kind = "audio" if projector == "ultravox" else "vision"
    writer.add_type("mmproj")
    writer.add_string("clip.projector_type", projector)
    writer.add_bool(f"clip.has_{kind}_encoder", val=True)
    writer.add_bool("clip.use_gelu", val=True)
    for name, number in (
        ("embedding_length", _DIMS),
        ("feed_forward_length", 2 * _DIMS),
        ("block_count", 1),
        ("projection_dim", dims),
        ("attention.head_count", _HEADS),
    ):
        writer.add_uint32(f"clip.{kind}.{name}", number)
    writer.add_float32(f"clip.{kind}.attention.layer_norm_epsilon", 1e-6)
    weights = _Weights(writer, np.random.default_rng(seed))
    if kind == "audio":
        _add_sound_encoder(writer, weights, dims)
    else:
        _add_image_encoder(writer, weights, projector, dims)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Weights:
    def __init__(self, writer: gguf.GGUFWriter, random: np.random.Generator) -> None:
        self._writer = writer
        self._random = random

    def random(self, name: str, *shape: int, dtype: type = np.float32) -> None:
        scale = 2 / np.sqrt(np.prod(shape[1:]) or 1)
        self._writer.add_tensor(name, (self._random.standard_normal(shape) * scale).astype(dtype))

    def constant(self, name: str, size: int, value: float) -> None:
        self._writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.random(f"{name}.weight", rows, columns)
        self.constant(f"{name}.bias", rows, 0.0)

    def block(self, prefix: str) -> None:
        """A transformer's layer; keys have no bias, as in Whisper."""
        for norm in ("ln1", "ln2"):
            self.constant(f"{prefix}.{norm}.weight", _DIMS, 1.0)
            self.constant(f"{prefix}.{norm}.bias", _DIMS, 0.0)
        for name in ("attn_q", "attn_v", "attn_out"):
            self.linear(f"{prefix}.{name}", _DIMS, _DIMS)
        self.random(f"{prefix}.attn_k.weight", _DIMS, _DIMS)
        # The names of the two are the wrong way round in files of some projectors, which their dimensions tell.
        self.linear(f"{prefix}.ffn_up", 2 * _DIMS, _DIMS)
        self.linear(f"{prefix}.ffn_down", _DIMS, 2 * _DIMS)


def _add_image_encoder(writer: gguf.GGUFWriter, weights: _Weights, projector: Projector, dims: int) -> None:
    merged = 1 if projector == "janus_pro" else 2
    patches = IMAGE_TOKENS * merged * merged
    writer.add_uint32("clip.vision.image_size", int(patches**0.5) * _PATCH)
    writer.add_uint32("clip.vision.patch_size", _PATCH)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    if projector in {"gemma3", "idefics3"}:
        writer.add_uint32("clip.vision.projector.scale_factor", merged)
    if projector == "idefics3":
        writer.add_uint32("clip.vision.preproc_image_size", 2 * int(patches**0.5) * _PATCH)
    weights.random("v.patch_embd.weight", _DIMS, 3, _PATCH, _PATCH)
    weights.block("v.blk.0")
    weights.constant("v.post_ln.weight", _DIMS, 1.0)
    weights.constant("v.post_ln.bias", _DIMS, 0.0)
    if projector == "qwen2vl_merger":
        weights.random("v.patch_embd.weight.1", _DIMS, 3, _PATCH, _PATCH)
        weights.constant("v.blk.0.attn_k.bias", _DIMS, 0.0)
        weights.linear("mm.0", 4 * _DIMS, 4 * _DIMS)
        weights.linear("mm.2", dims, 4 * _DIMS)
        return
    weights.random("v.position_embd.weight", patches, _DIMS)
    if projector == "gemma3":
        weights.random("mm.input_projection.weight", _DIMS, dims)
        weights.constant("mm.soft_emb_norm.weight", _DIMS, 1.0)
    elif projector == "idefics3":
        weights.random("mm.model.fc.weight", dims, merged * merged * _DIMS)
    else:
        weights.linear("mm.0", dims, _DIMS)
        weights.linear("mm.1", dims, dims)


def _add_sound_encoder(writer: gguf.GGUFWriter, weights: _Weights, dims: int) -> None:
    bins, frames = 80, 3000
    writer.add_uint32("clip.audio.num_mel_bins", bins)
    writer.add_uint32("clip.audio.projector.stack_factor", _STACK)
    weights.random("a.conv1d.1.weight", _DIMS, bins, 3, dtype=np.float16)
    weights.random("a.conv1d.2.weight", _DIMS, _DIMS, 3, dtype=np.float16)
    for number in (1, 2):
        writer.add_tensor(f"a.conv1d.{number}.bias", np.zeros((_DIMS, 1), dtype=np.float32))
    weights.random("a.position_embd.weight", frames // 2, _DIMS)
    weights.block("a.blk.0")
    weights.constant("a.post_ln.weight", _DIMS, 1.0)
    weights.constant("a.post_ln.bias", _DIMS, 0.0)
    weights.constant("mm.a.norm_pre.weight", _DIMS * _STACK, 1.0)
    weights.random("mm.a.mlp.1.weight", 2 * _DIMS, _DIMS * _STACK)
    weights.constant("mm.a.norm_mid.weight", _DIMS, 1.0)
    weights.random("mm.a.mlp.2.weight", dims, _DIMS)


def png(seed: int, *, width: int = 40, height: int = 40) -> bytes:
    """A PNG of random blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png_of(width, height, rows)


def png_of(width: int, height: int, rows: bytes, *, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    """A PNG with these rows, each with the number of its filter first."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def wav(seed: int, *, samples: int = 8000) -> bytes:
    """A WAV of noise, 16 kHz, mono."""
    noise = np.random.default_rng(seed).integers(-8000, 8000, samples, dtype=np.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(noise.tobytes())
    return buffer.getvalue()


def data_url(image: bytes, kind: str = "image/png") -> str:
    """An image as it stands in a request."""
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def seen(text: str, *media: bytes) -> ChatPrompt:
    """One turn of a user; `*` in the text stands for the next of the media."""
    return ChatPrompt([ChatMessage("user", text.replace("*", MEDIA_MARKER), media=list(media))])
