"""Key-value caches in calls of a loaded module: what the plain model does to them is done."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import shardlang
from shardlang.capture.caches import fill
from shardlang.capture.nest import is_cache
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule
from tests.broad import broad, sampled
from tests.runtime.spawn import spawn

transformers = pytest.importorskip("transformers")
from tests.hugging.cached import whole  # noqa: E402

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3,
}  # fmt: skip
SPEC = """mesh {{ dp = {dp} }}
model hf("config.json", task = "causal-lm", dtype = "float64", mode = "eval")
input input_ids : i64[4, 7] [dp, _]
{mask}
input "past_key_values.*.{{key,value}}" : f64[4, 2, 3, 8] [dp, _, _, _]
"""
STARTS = ("its own", "whole")
EMPTY = [("llama", False, True), ("llama", True, False), ("mistral", True, None)]
PROMPT = torch.randint(0, 61, (4, 6), generator=torch.Generator().manual_seed(1))


def written(folder: Path, kind: str, dp: int, masked: bool = False, **more: int) -> Any:
    """A plain model, whose configuration and spec are written into a folder."""
    config = transformers.AutoConfig.for_model(kind, **SIZES, **more)
    config.save_pretrained(folder)
    mask = "input attention_mask : i64[4, 10] [dp, _]" if masked else ""
    (folder / "spec.shard").write_text(SPEC.format(mask=mask, dp=dp))
    return transformers.AutoModelForCausalLM.from_config(config).double().eval()


def pair(folder: Path, kind: str, masked: bool, **more: int) -> tuple[ShardedModule, Any]:
    """A sharded module and the plain model of the same weights."""
    plain = written(folder, kind, 1, masked, **more)
    module = shardlang.compile(folder / "spec.shard").load("cpu").eval()
    plain.load_state_dict(module.state_dict())
    return module, plain


def test_a_window_knows_how_many_tokens_it_has_left_behind(tmp_path: Path) -> None:
    module, plain = pair(tmp_path, "mistral", True, sliding_window=4)
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, :4] = 0
    mine, theirs, ids = {}, {}, PROMPT
    with torch.no_grad():
        for seen in range(6, 10):
            both = {"input_ids": ids, "attention_mask": mask[:, :seen], "use_cache": True}
            found = module(**module.shard_inputs(**both, **mine))
            wanted = plain(**both, **theirs)
            torch.testing.assert_close(whole(found.logits), wanted.logits, rtol=1e-12, atol=1e-12)
            mine = {"past_key_values": found.past_key_values}
            theirs = {"past_key_values": wanted.past_key_values}
            assert found.past_key_values.get_seq_length() == seen
            ids = PROMPT[:, seen % 6, None]


@pytest.mark.parametrize("start", sampled(STARTS, ["whole"]))
def test_the_cache_that_is_passed_is_filled(tmp_path: Path, start: str) -> None:
    """Be it the module's own, or a whole one that `shard_inputs` cuts anew for every call."""
    module, plain = pair(tmp_path, "llama", False)
    with torch.no_grad():
        theirs = plain(input_ids=PROMPT, use_cache=True).past_key_values
        mine = copy.deepcopy(theirs)
        if start == "its own":
            mine = module(**module.shard_inputs(input_ids=PROMPT), use_cache=True).past_key_values
        for at in range(3):
            ids = PROMPT[:, at : at + 1]
            found = module(**module.shard_inputs(input_ids=ids, past_key_values=mine))
            wanted = plain(input_ids=ids, past_key_values=theirs)
            torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-12, atol=1e-12)
            given = [mine, found.past_key_values]
            assert [cache.get_seq_length() for cache in given] == [7 + at, 7 + at]
            assert all(a is b for a, b in zip(*(cache.layers for cache in given), strict=True))


def test_a_cache_that_a_call_did_not_give_back_is_refused(tmp_path: Path) -> None:
    """The model has put into it what no program gives; llama's gives it back whatever is asked."""
    module, plain = pair(tmp_path, "llama", False)
    with torch.no_grad():
        cache = plain(input_ids=PROMPT, use_cache=True).past_key_values
        inputs = module.shard_inputs(input_ids=PROMPT[:, :1], past_key_values=cache)
        module(**inputs, use_cache=False)
        assert cache.get_seq_length() == 7
        fill(inputs, {"logits": PROMPT})
        with pytest.raises(RunError, match="gave none back"):
            module(**inputs)
        with pytest.raises(RunError, match="gave none back"):
            module.shard_inputs(input_ids=PROMPT[:, :1], past_key_values=cache)
        empty = transformers.DynamicCache()
        fill({"past_key_values": empty}, {"logits": PROMPT})
        with pytest.raises(RunError, match="gave none back"):
            module(input_ids=PROMPT, past_key_values=empty)


@pytest.mark.parametrize("start", sampled(STARTS, ["its own"]))
def test_inputs_that_were_cut_before_their_cache_was_filled_are_refused(
    tmp_path: Path, start: str
) -> None:
    """The plain model would append to what the first call left; the same inputs twice do that."""
    module, plain = pair(tmp_path, "llama", False)
    with torch.no_grad():
        theirs = plain(input_ids=PROMPT, use_cache=True).past_key_values
        mine = copy.deepcopy(theirs)
        if start == "its own":
            mine = module(input_ids=PROMPT, use_cache=True).past_key_values
        ids, others = PROMPT[:, :1], PROMPT[:, 1:2]
        inputs = module.shard_inputs(input_ids=ids, past_key_values=mine)
        late = module.shard_inputs(input_ids=others, past_key_values=mine)
        for _ in range(2):
            wanted = plain(input_ids=ids, past_key_values=theirs).logits
            torch.testing.assert_close(module(**inputs).logits, wanted, rtol=1e-12, atol=1e-12)
        for call in (module, module.shard_inputs):
            with pytest.raises(RunError, match="since these inputs were cut"):
                call(**late)
        wanted = plain(input_ids=others, past_key_values=theirs).logits
        found = module(**module.shard_inputs(input_ids=others, past_key_values=mine)).logits
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        mine.reorder_cache(torch.tensor([1, 0, 2, 3]))
        with pytest.raises(RunError, match="since these inputs were cut"):
            module(**inputs)


@pytest.mark.parametrize(
    "kind, configured, keeps",
    sampled(EMPTY, [("llama", False, True), ("mistral", True, None)]),
)
def test_an_empty_cache_is_filled(
    tmp_path: Path, kind: str, configured: bool, keeps: bool | None
) -> None:
    """The loop may begin with one; what it is told of `use_cache` the model is told as well."""
    window = {"sliding_window": 4} if kind == "mistral" else {}
    module, plain = pair(tmp_path, kind, False, **window)
    config = plain.config if configured else None
    mine, theirs = (transformers.DynamicCache(config=config) for _ in range(2))
    given = {} if keeps is None else {"use_cache": keeps}
    with torch.no_grad():
        for ids in (PROMPT, PROMPT[:, :1], PROMPT[:, 1:3]):
            inputs = module.shard_inputs(input_ids=ids, past_key_values=mine, **given)
            found = module(**inputs)
            wanted = plain(input_ids=ids, past_key_values=theirs, **given)
            torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-12, atol=1e-12)
            assert mine.get_seq_length() == theirs.get_seq_length()
            both = zip(mine.layers, found.past_key_values.layers, strict=True)
            assert all(a is b for a, b in both)
            held = [*map(type, vars(theirs.layers[0]).values())]
            assert [*map(type, vars(mine.layers[0]).values())] == held
        mine.reset()
        wanted = plain(input_ids=PROMPT).logits
        found = module(input_ids=PROMPT, past_key_values=mine).logits
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert mine.get_seq_length() == 6


@broad
def test_two_processes_fill_an_empty_cache(tmp_path: Path) -> None:
    plain = written(tmp_path, "mistral", 2, sliding_window=4)
    found = spawn("tests.hugging.cached:greedy", 2, tmp_path, 240, SCRATCH=str(tmp_path))
    for weights, logits, lengths in found:
        plain.load_state_dict(weights)
        ids = torch.arange(24).reshape(4, 6)
        for step in logits:
            with torch.no_grad():
                wanted = plain(input_ids=ids).logits[:, -step.shape[1] :]
            torch.testing.assert_close(step, wanted, rtol=1e-12, atol=1e-12)
            ids = torch.cat([ids, step[:, -1:].argmax(-1)], 1)
        assert lengths == [6, 7, 8]


def test_an_empty_cache_that_is_not_the_models_own_is_refused(tmp_path: Path) -> None:
    module, plain = pair(tmp_path, "mistral", False, sliding_window=4)
    others = [
        transformers.DynamicCache(),
        transformers.Cache(layers=[]),
        transformers.StaticCache(config=plain.config, max_cache_len=9),
    ]
    for cache in others:
        with pytest.raises(RunError, match=r"layer 0 of|is a `StaticCache`"):
            module(input_ids=PROMPT, past_key_values=cache, use_cache=True)


def test_a_cache_with_other_layers_than_the_models_own_is_refused(tmp_path: Path) -> None:
    """One without the configuration keeps more than a window, and counts otherwise."""
    module, plain = pair(tmp_path, "mistral", False, sliding_window=4)
    config, ids = plain.config, PROMPT[:, :1]
    with torch.no_grad():
        own, bare = (transformers.DynamicCache(config=c) for c in (config, None))
        for cache in (own, bare):
            plain(input_ids=PROMPT, past_key_values=cache, use_cache=True)
        recording = copy.deepcopy(own)
        recording.layers[1].activate_past_recording()
        for cache, words in ((bare, "0 of the cache is `DynamicLayer"), (recording, "layer 1 of")):
            for call in (module, module.shard_inputs):
                with pytest.raises(RunError, match=words) as refused:
                    call(input_ids=ids, past_key_values=cache)
                assert "DynamicCache(config=model.config)" in str(refused.value.help)
        inputs = module.shard_inputs(input_ids=ids, past_key_values=own)
        found, cache = module(**inputs).logits, copy.deepcopy(own)
        assert cache.get_seq_length() == 7
        wanted = plain(input_ids=torch.cat([PROMPT, ids], 1)).logits[:, -1:]
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_what_a_call_gives_can_be_copied(tmp_path: Path) -> None:
    """Nothing of the trace is left in a layer that knows its window as a tensor."""
    module, plain = pair(tmp_path, "mistral", False, sliding_window=4)
    with torch.no_grad():
        given = module(input_ids=PROMPT, use_cache=True).past_key_values
        wanted = plain(input_ids=PROMPT, use_cache=True).past_key_values
        for cache in (given, copy.deepcopy(given)):
            for mine, theirs in zip(cache.layers, wanted.layers, strict=True):
                assert [*map(type, vars(mine).values())] == [*map(type, vars(theirs).values())]
                torch.testing.assert_close(mine._sliding_window_tensor, torch.tensor(4))
                torch.testing.assert_close(mine.keys, theirs.keys)


def test_no_past_is_refused_where_the_call_does_not_say_whether_it_keeps_a_cache(
    tmp_path: Path,
) -> None:
    """The plain model begins a cache there, and the loop would forget all that came before."""
    module, _ = pair(tmp_path, "llama", False)
    for call in (module, module.shard_inputs):
        for given in ({}, {"use_cache": None}):
            with pytest.raises(RunError, match="`past_key_values=None` without `use_cache`"):
                call(input_ids=PROMPT, past_key_values=None, **given)
        with pytest.raises(RunError, match="`past_key_values=None` without `use_cache`"):
            call(PROMPT, None, None, None)
    with torch.no_grad():
        for keeps in (True, False):
            inputs = module.shard_inputs(input_ids=PROMPT, past_key_values=None, use_cache=keeps)
            found = module(**inputs).past_key_values
            assert (found is not None) == keeps


def test_a_cache_of_other_tensors_is_none_that_is_known() -> None:
    cache = transformers.DynamicCache()
    cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    assert is_cache(cache)
    cache.layers[0].sums = torch.ones(3)
    assert not is_cache(cache)
