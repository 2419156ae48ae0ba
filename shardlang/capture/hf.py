"""Hugging Face models from a configuration file or a checkpoint folder."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from shardlang.capture.checkpoint import check_files
from shardlang.capture.errors import CaptureError, first_line, no_file, shown
from shardlang.capture.hf_caches import check_kinds, check_no_past, filled, kinds_of
from shardlang.capture.hf_types import Cache, Config, ConfigClass, ModelClass, Models
from shardlang.capture.nest import is_cache, is_empty
from shardlang.capture.python_file import check_mode
from shardlang.capture.source import InputSpec, ModelSource, unknown_input
from shardlang.grammar.diagnostics import join_words, quote
from shardlang.grammar.files import UnreadableError, read_text

TASKS: dict[str, str] = {
    "base": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
    "ctc": "AutoModelForCTC",
}
LAYERS = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers", "num_encoder_layers", "layers", "depth",
)  # fmt: skip
"""What configurations call the number of layers."""

_BUILD_OPTIONS = ("attn_implementation", "experts_implementation", "dtype")
TRACEABLE_EXPERTS = "grouped_mm"
"""The implementation of mixtures of experts that is traced token by token."""

_VOCABULARY_LABELS = ("causal-lm", "masked-lm", "seq2seq-lm", "speech-seq2seq")
_TOKEN_LABELS = (*_VOCABULARY_LABELS, "token-classification")
_LARGEST_CONFIG_BYTES = 2**24
_EXTRA_INPUTS = ("num_items_in_batch",)


class HfSource(ModelSource):
    """A transformers model.

    `path` is a configuration file, or a folder with `config.json` and possibly safetensors files,
    whose weights are then the initial ones. Options: `task` (a key of `TASKS`; without it the
    configuration's `architectures`), `mode`, `attn_implementation`, `experts_implementation`,
    `dtype`; any other is an attribute of the configuration to change. Mixtures of experts default
    to `TRACEABLE_EXPERTS`, unless the configuration says which: the implementation of transformers'
    that branches on the data cannot be traced.
    """

    def __init__(self, path: Path | str, **options: object) -> None:
        self.path = Path(path)
        task = options.pop("task", None)
        self.task = None if task is None else str(task)
        self.mode = str(options.pop("mode", "train"))
        check_mode(self.mode)
        if self.task is not None and self.task not in TASKS:
            near = difflib.get_close_matches(self.task, list(TASKS), n=1)
            help = f"did you mean `{near[0]}`?" if near else f"choose {join_words(quote(TASKS))}"
            raise CaptureError("SH0352", f"there is no task `{self.task}`", help=help)
        self.build_options = {k: options.pop(k) for k in _BUILD_OPTIONS if k in options}
        self.overrides = options
        if self.path.is_dir() and any(self.path.glob("*.safetensors")):
            self.checkpoint = self.path
        elif self.path.is_dir() and any(self.path.glob("pytorch_model*.bin")):
            raise CaptureError(
                "SH0359",
                f"`{self.path.name}` holds its weights in pickled files, which are not read",
                help="save it with `model.save_pretrained(folder)`, which writes safetensors",
            )

    @functools.cached_property
    def settings(self) -> dict[str, object]:
        """The configuration as JSON holds it."""
        path = self.path / "config.json" if self.path.is_dir() else self.path
        try:
            text = read_text(path, _LARGEST_CONFIG_BYTES)
            settings = json.loads(text, object_hook=_special_float)
        except UnreadableError as error:
            if not path.exists():
                raise _no_config(path) from None
            raise CaptureError(
                "SH0350",
                f"cannot read `{path.name}`: {error}",
                help="name the JSON file of a Hugging Face configuration",
            ) from None
        except (ValueError, RecursionError) as error:
            raise CaptureError(
                "SH0350",
                f"`{path.name}` is not JSON: {first_line(error)}",
                help="fix the file; the model's `config.save_pretrained` writes a valid one",
            ) from None
        if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
            raise CaptureError(
                "SH0350",
                f"`{path.name}` is not a model configuration",
                help="a Hugging Face configuration has a `model_type`",
            )
        return settings

    def config(self) -> Config:
        """A fresh transformers configuration."""
        transformers = import_transformers()
        settings = dict(self.settings)
        model_type = str(settings["model_type"])
        if model_type not in transformers.CONFIG_MAPPING:
            near = difflib.get_close_matches(model_type, list(transformers.CONFIG_MAPPING), n=3)
            raise CaptureError(
                "SH0350",
                f"transformers {transformers.__version__} knows no model type `{model_type}`",
                help=f"did you mean {join_words(quote(near))}?"
                if near
                else "use a newer transformers, or build the model in a file of your own:"
                ' `model "file.py:function"`',
            )
        kind: ConfigClass = transformers.CONFIG_MAPPING[model_type]
        plain = kind.from_dict(settings)
        return kind.from_dict(_changed(settings, plain, self.overrides))

    def construct(self) -> nn.Module:
        if self.checkpoint is not None:
            check_files(self.checkpoint)
        config = self.config()
        options = dict(self.build_options)
        if "dtype" in options:
            options["dtype"] = getattr(torch, str(options["dtype"]).removeprefix("torch."))
        kind = self._model_class(config)
        config = _config_for(kind, config)
        settable = getattr(kind, "_can_set_experts_implementation", bool)()
        if settable and config._experts_implementation is None:
            options.setdefault("experts_implementation", TRACEABLE_EXPERTS)
        return kind._from_config(config, **options)

    def _model_class(self, config: Config) -> ModelClass:
        """The model class for the task, or the one that the configuration names."""
        if self.task is not None:
            mapping = models_of(self.task)
            if type(config) not in mapping:
                raise CaptureError(
                    "SH0352",
                    f"`{config.model_type}` models do not do `{self.task}`",
                    help=f"they do {join_words(quote(self._tasks_of(config)), 'and')}",
                )
            return _chosen(mapping[type(config)], config)
        named = (config.architectures or [""])[0]
        found: ModelClass | None = getattr(import_transformers(), named, None) if named else None
        if found is None:
            raise CaptureError(
                "SH0352",
                "the configuration does not say which model class to build",
                help='add a task, such as `task = "causal-lm"`',
            )
        return found

    @staticmethod
    def _tasks_of(config: Config) -> list[str]:
        """The tasks for which transformers has a class of this kind of model."""
        return [task for task in TASKS if type(config) in models_of(task)]

    @property
    def advice(self) -> str:
        return "; ".join(filter(None, (self._advice_on_layers(), self._advice_on_experts())))

    def _advice_on_layers(self) -> str:
        """What to say of a model that skips layers at random in training."""
        found = {
            name: value
            for config in (self.text_config, self.config())
            for name, value in vars(config).items()
            if name.endswith("layerdrop") and value
        }
        if self.mode != "train" or not found:
            return ""
        given = ", ".join(f"{name} = {value}" for name, value in found.items())
        wanted = ", ".join(f"{name} = 0.0" for name in found)
        return (
            f"the configuration has `{given}`, which skips whole layers at random: add `{wanted}`"
            " to `model hf(...)`"
        )

    def _advice_on_experts(self) -> str:
        """What to say of an implementation of experts that looks at the data."""
        traceable = (None, TRACEABLE_EXPERTS)
        chosen = self.build_options.get("experts_implementation")
        configured = getattr(self.config(), "_experts_implementation", None)
        if chosen is None and configured not in traceable:
            return (
                f'the configuration has `experts_implementation = "{configured}"`, which looks at'
                " the data to choose experts: add"
                f' `experts_implementation = "{TRACEABLE_EXPERTS}"` to `model hf(...)`'
            )
        if chosen in traceable:
            return ""
        return (
            f'`experts_implementation = "{chosen}"` looks at the data to choose experts: leave it'
            f' out of `model hf(...)`, or write `experts_implementation = "{TRACEABLE_EXPERTS}"`'
        )

    def input_names(self) -> tuple[str, ...]:
        names = self.forward_names
        if "past_key_values" not in names:
            return names
        layers = getattr(self.text_config, "num_hidden_layers", 0)
        parts = [f"past_key_values.{i}.{p}" for i in range(layers) for p in ("key", "value")]
        return (*(n for n in names if n != "past_key_values"), *parts)

    def arguments(self, inputs: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        args, kwargs = super().arguments(inputs)
        past = kwargs.get("past_key_values")
        if isinstance(past, list):
            kwargs["past_key_values"] = filled(self._own_cache(), past)
        if "use_cache" in self.forward_names:
            kwargs.setdefault("use_cache", past is not None)
        return args, kwargs

    @functools.cached_property
    def _kinds(self) -> list[str]:
        """The layers of the model's own cache."""
        return kinds_of(self._own_cache().layers)

    def _own_cache(self) -> Cache:
        """A key-value cache as the model makes it, which holds nothing."""
        cache: Cache = import_transformers().DynamicCache(config=self.text_config)
        return cache

    def taken(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """A past that holds nothing yet is an empty list."""
        if "use_cache" in self.forward_names:
            check_no_past(given)
        past = given.get("past_key_values")
        if not is_cache(past):
            return given
        check_kinds(past, self._kinds)
        return {**given, "past_key_values": []} if is_empty(past) else given

    def check_names(self, names: Iterable[str]) -> None:
        known = sorted(self.forward_names)
        for name in names:
            if name not in known and name not in _EXTRA_INPUTS:
                raise unknown_input(name, known)

    @functools.cached_property
    def text_config(self) -> Config:
        """The part of the configuration that speaks of tokens."""
        return self.config().get_text_config(decoder=True)

    def integer_range(self, spec: InputSpec) -> tuple[int, int]:
        if spec.below is not None:
            return 0, spec.below
        config = self.text_config
        name = spec.name.split(".")[-1]
        if name == "labels" and self.task not in (None, *_VOCABULARY_LABELS, "ctc"):
            return 0, int(config.num_labels)
        if name == "token_type_ids":
            return 0, int(getattr(config, "type_vocab_size", 1))
        if name in ("start_positions", "end_positions"):
            return 0, 2
        return 0, int(getattr(config, "vocab_size", 2))

    def ignores_labels(self, spec: InputSpec) -> bool:
        if spec.name != "labels" or spec.dtype.is_floating_point or len(spec.shape) < 2:
            return False
        return self.task in (None, *_TOKEN_LABELS)


def _special_float(found: dict[str, object]) -> object:
    """An infinity or NaN as transformers writes it, `{"__float__": "Infinity"}`, for `json`."""
    tag = found.get("__float__")
    if len(found) == 1 and tag in ("Infinity", "-Infinity", "NaN"):
        return float(str(tag))
    return found


def _no_config(path: Path) -> CaptureError:
    """The error for a configuration that is not there; a name on the hub is not a file."""
    name = str(shown(path))
    if path.suffix or path.parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return no_file(path)
    folder = path.name.lower()
    return CaptureError(
        "SH0350",
        f"`{name}` is not a file or folder here, and nothing is fetched from the Hugging Face hub",
        help=f"save it first, in Python: `AutoConfig.from_pretrained({name!r}).save_pretrained("
        f"{folder!r})`, or its model with the weights; then name `{folder}`",
    )


def _no_option(name: str, config: Config) -> CaptureError:
    """The error for an argument of `hf` that the configuration does not have."""
    own = ("task", "mode", *_BUILD_OPTIONS)
    near = difflib.get_close_matches(name, [*own, *config.to_dict()], n=3)
    if near:
        help = f"did you mean {join_words(quote(near))}?"
    else:
        help = f"an option of `hf` is {join_words(quote(own))}, or a key of the configuration"
    return CaptureError("SH0352", f"`{config.model_type}` has no option `{name}`", help=help)


def _changed(
    settings: Mapping[str, object], plain: Config, overrides: Mapping[str, object]
) -> dict[str, object]:
    """Settings with other values; those that a configuration of several lacks are its text's."""
    own = {name: value for name, value in overrides.items() if hasattr(plain, name)}
    others = {name: value for name, value in overrides.items() if name not in own}
    text = getattr(plain, "text_config", None)
    for name in others:
        if not hasattr(text, name):
            raise _no_option(name, plain)
    changed = _with_fewer_layers(settings, plain, own)
    if others:
        inner = settings.get("text_config")
        stored = inner if isinstance(inner, dict) else {}
        changed["text_config"] = _with_fewer_layers(stored, text, others)
    return changed


def _with_fewer_layers(
    settings: Mapping[str, object], plain: object, changes: Mapping[str, object]
) -> dict[str, object]:
    """Changed settings; lists with an entry for each layer end with the layers."""
    counts = {
        getattr(plain, name): value
        for name, value in changes.items()
        if name in LAYERS and isinstance(value, int)
    }
    cut = {
        name: value[: counts[len(value)]]
        for name, value in settings.items()
        if isinstance(value, list) and len(value) in counts
    }
    return {**settings, **cut, **changes}


def _chosen(found: ModelClass | Sequence[ModelClass], config: Config) -> ModelClass:
    """Of several classes for one task the one that the configuration names, else the first."""
    kinds = found if isinstance(found, Sequence) else (found,)
    named = config.architectures or ()
    return next((kind for kind in kinds if kind.__name__ in named), kinds[0])


def _config_for(kind: ModelClass, config: Config) -> Config:
    """The text part of a configuration of several, where the model class is for text alone."""
    text = config.sub_configs.get("text_config")
    alone = text is not None and getattr(kind, "config_class", None) is text
    return config.get_text_config() if alone else config


def models_of(task: str) -> Models:
    """From the classes of configurations to those of models that do a task."""
    models: Models = getattr(import_transformers(), TASKS[task])._model_mapping
    return models


def import_transformers() -> ModuleType:
    """The transformers package. Raises SH0352 if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise CaptureError(
            "SH0352",
            "Hugging Face models need the transformers package",
            help="install it with `pip install shardlang[hf]`",
        ) from None
    return transformers
