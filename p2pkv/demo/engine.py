"""The demo's engine: a real model in its own process, attached to one node, that answers questions about one document.

Not a serving engine, but nothing is left out that decides its numbers: it tokenizes, looks in the mesh, computes what did
not come from there, and decodes greedily.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import torch
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

from p2pkv.blocks import CanonicalLayout, Dtype
from p2pkv.client import Client
from p2pkv.connectors.layout import TORCH_DTYPES, block_filler, elements_of
from p2pkv.connectors.transformers import TransformersConnector, plain_layers, weights_digest
from p2pkv.demo.lines import (
    Answer,
    Ask,
    Broken,
    Digest,
    Digests,
    From,
    Publish,
    Reach,
    Reachable,
    Ready,
    Reply,
    Request,
    Shared,
)
from p2pkv.errors import P2pkvError


class Engine:
    """One model, one connector, and the KV of the last prompt."""

    def __init__(self, client: Client, folder: Path, dtype: Dtype) -> None:
        self._document = files("p2pkv.demo").joinpath("document.txt").read_text(encoding="utf-8")
        # Any, because the library's own annotations deny what its documentation shows.
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        llama: Any = LlamaForCausalLM
        self._model: Any = llama.from_pretrained(folder, dtype=TORCH_DTYPES[dtype]).eval()
        self.connector = TransformersConnector(client, self._model, weights_id=weights_digest(folder))
        self._prompt: list[int] = []
        self._cache = DynamicCache(config=self._model.config)

    def answer(self, ask: Ask) -> Answer:
        """Answer a question; the prompt's KV stays for `publish` and `digests`."""
        began = time.perf_counter()
        prompt = self._tokens(ask.question)
        if ask.mesh:
            prefix = self.connector.prefix(prompt, cache_salt=ask.cache_salt)
            cache, hit, report = prefix.cache, prefix.tokens, prefix.report
        else:
            cache, hit, report = DynamicCache(config=self._model.config), 0, None
        token = self._next(prompt[hit:], cache)
        ttft_s = time.perf_counter() - began
        tokens = [token]
        while len(tokens) < ask.answer_tokens and token != self._tokenizer.eos_token_id:
            token = self._next([token], cache)
            tokens.append(token)
        self._prompt, self._cache = prompt, cache
        sources = report.sources if report else ()
        return Answer(
            text=self._tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            tokens=tokens,
            prompt_tokens=len(prompt),
            ttft_ms=ttft_s * 1000,
            hit_blocks=report.blocks if report else 0,
            hit_tokens=hit,
            sources=[From(peer=s.peer, transport=s.transport, blocks=s.blocks, bytes=s.bytes) for s in sources],
            fetch_ms=report.fetch_s * 1000 if report else 0.0,
            build_ms=report.build_s * 1000 if report else 0.0,
            reason=report.reason if report else "the mesh was not asked",
        )

    def publish(self, request: Publish) -> Shared:
        """Give the last prompt's blocks to the mesh."""
        published = self.connector.publish(self._prompt, self._cache, cache_salt=request.cache_salt)
        return Shared(
            stored=published.stored, present=published.present, refused=published.refused, reason=published.reason
        )

    def reach(self, request: Reach) -> Reachable:
        """Say how much of a prompt could come from the mesh."""
        tokens = self._tokens(request.question)
        return Reachable(tokens=self.connector.reachable_tokens(tokens, cache_salt=request.cache_salt))

    def digests(self, request: Digest) -> Digests:
        """Hash the last prompt's blocks out of the tensors that the model computed with."""
        layout = self.connector.layout
        assert isinstance(layout, CanonicalLayout), "the demo's model has rows of one length"
        layers = [(elements_of(keys[0]), elements_of(values[0])) for keys, values in plain_layers(self._cache)]
        fill, body = block_filler(layers, layout), np.empty(layout.block_bytes, dtype=np.uint8)
        sha256 = []
        for i in range(request.blocks):
            fill(i, body)
            sha256.append(hashlib.sha256(body.data).hexdigest())
        return Digests(sha256=sha256)

    def _tokens(self, question: str) -> list[int]:
        chat = [{"role": "user", "content": f"{self._document}\n{question}"}]
        tokens: list[int] = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        return tokens

    def _next(self, tokens: list[int], cache: DynamicCache) -> int:
        with torch.inference_mode():
            output = self._model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return int(output.logits[0, -1].argmax())


def serve(engine: Engine, requests: IO[bytes], reply: Callable[[Reply], None]) -> None:
    """Answer requests until their end."""
    decoder = msgspec.json.Decoder(Request)
    for line in requests:
        match decoder.decode(line):
            case Ask() as ask:
                reply(engine.answer(ask))
            case Publish() as publish:
                reply(engine.publish(publish))
            case Reach() as reach:
                reply(engine.reach(reach))
            case Digest() as digest:
                reply(engine.digests(digest))


def main() -> None:
    """Load the model, say `Ready`, serve."""
    parser = argparse.ArgumentParser(prog="python -m p2pkv.demo.engine", description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the converted model")
    parser.add_argument("--dtype", choices=sorted(TORCH_DTYPES), required=True)
    parser.add_argument("--socket", type=Path, required=True, help="the daemon's socket")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # Libraries print to standard output when they feel like it: keep the channel, and let them have standard error.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(line: Reply) -> None:
        channel.write(msgspec.json.encode(line) + b"\n")

    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    try:
        with Client.connect(arguments.socket, name="demo engine") as client:
            engine = Engine(client, arguments.model, arguments.dtype)
            layout = engine.connector.layout
            reply(
                Ready(
                    model=arguments.model.name,
                    dtype=layout.dtype,
                    block_tokens=layout.block_tokens,
                    block_bytes=layout.block_bytes,
                    load_s=time.perf_counter() - began,
                )
            )
            serve(engine, sys.stdin.buffer, reply)
    except P2pkvError as exc:
        reply(Broken(message=str(exc), hint=exc.hint))
        sys.exit(1)


if __name__ == "__main__":
    main()
