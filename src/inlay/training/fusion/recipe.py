"""FuseRecipe: both stages of an AdapterFusion as one small YAML file.

base: minilm
method: Pfeiffer(bottleneck=24)
adapters:
  topics: runs/topics/default.safetensors
  questions:
    task: {kind: classify}
    data: {train: {source: trec, split: train}}
    training: {steps: 300}
task: {kind: classify}
data:
  train: {source: new.csv}
  dev: {source: more.csv}
training: {steps: 300}
out: runs/fused
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from inlay.core.method import Method, Spec
from inlay.core.parse import make_method, parse
from inlay.errors import InlayError, together
from inlay.methods.fusion import Fusion
from inlay.training.loop.options import PositiveInt, Seed, Training
from inlay.training.recipes import yaml
from inlay.training.recipes.recipe import (
    STRICT,
    Data,
    MethodText,
    Name,
    Quantize,
    Recipe,
    TaskFields,
    check_name,
    read,
    validate,
)

DEFAULT_METHOD = "Pfeiffer()"
"""What an adapter is where the recipe does not say."""

ADAPTERS = "adapters"
"""The folder, in that of the run, in which adapters are trained."""

START = "start.safetensors"
"""The fusion before its training, in the same folder."""


class Adapter(BaseModel):
    """One adapter of a fusion: the file of a trained one, or how to train it.

    file: of a trained inlay; written alone, without its name, it is the whole entry.
    method: what to train; None for that of the recipe.
    task, data, training: as in `Recipe`.
    seed: None for that of the recipe.
    """

    model_config = STRICT

    file: str | None = None
    method: MethodText | None = None
    task: TaskFields | None = None
    data: Data | None = None
    training: Training | None = None
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _file_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"file": value}
        if not isinstance(value, dict):
            raise ValueError(  # noqa: TRY004  # pydantic reports no TypeError
                "write the file of a trained adapter, or how to train one, as in "
                f"{{task: …, data: …}}, not {value!r:.80}"
            )
        return value

    @model_validator(mode="after")
    def _file_or_training(self) -> Adapter:
        names = ("method", "task", "data", "training", "seed")
        present = [name for name in names if getattr(self, name) is not None]
        if self.file is not None and present:
            raise ValueError(
                f"it is trained already, in {self.file}; leave {', '.join(present)} out, or the "
                "file, to train it anew"
            )
        missing = [name for name in ("task", "data") if name not in present]
        if self.file is None and missing:
            raise ValueError(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; give "
                "them to train it, or the file of a trained one alone"
            )
        return self

    @model_serializer(mode="wrap")
    def _file_as_text(self, plain: SerializerFunctionWrapHandler) -> Any:
        return plain(self) if self.file is None else self.file


class FuseRecipe(BaseModel):
    """What `train_fusion` does. Fields without a line here are as in `Recipe`, and so are paths.

    method: the adapter to train where `adapters` names no file; `Pfeiffer()` by default.
    adapters: what each adapter is called -> its file, or how to train it.
    fusion: fields of `Fusion`, such as {identity_weight: 0.01}.
    plus: methods that are trained beside the fusion, such as BitFit(); None for none.
    task, data, training: of the target, for which the fusion is trained.
    prune: how many adapters a second file keeps, the most used on `dev`, or else on `train`;
        None writes no second file.
    prune_per: whether these are the same for the whole "inlay", or of each "layer" its own.
    """

    model_config = STRICT

    base: str
    dtype: Literal["float32", "bfloat16"] | None = None
    quantize: Quantize | None = None
    method: MethodText | None = None
    adapters: Annotated[dict[str, Adapter], Field(min_length=1)]
    fusion: dict[str, Any] = Field(default_factory=dict)
    plus: MethodText | None = None
    name: Name = "default"
    task: TaskFields
    data: Data
    training: Training = Training()
    prune: PositiveInt | None = None
    prune_per: Literal["inlay", "layer"] = "inlay"
    out: str
    seed: Seed = 0

    @field_validator("fusion")
    @classmethod
    def _fusion(cls, value: dict[str, Any]) -> dict[str, Any]:
        derived = {"adapters", "names"} & value.keys()
        if derived:
            raise ValueError(f"{min(derived)} follow from the recipe's adapters; leave them out")
        validate(lambda fields: make_method(Fusion.__name__, fields), value)
        return value

    @model_validator(mode="after")
    def _parts_agree(self) -> FuseRecipe:
        faults = list(self._faults())
        if faults:
            raise ValueError(together(faults, "it"))
        return self

    def _faults(self) -> Iterator[str]:
        """What does not fit together."""
        for name in self.adapters:
            try:
                check_name(name)
            except ValueError as error:
                yield f"adapters: {error}"
        if self.method is not None and not any(a.file is None for a in self.adapters.values()):
            yield "every adapter has a file, and none is trained; leave method out"
        if self.prune is not None and self.prune >= len(self.adapters):
            yield (
                f"prune keeps fewer adapters than the {len(self.adapters)} there are, not "
                f"{self.prune}"
            )
        parts: dict[str, FuseRecipe | Adapter] = {"": self}
        parts |= {f"adapters.{name}.": part for name, part in self.trained().items()}
        for path, part in parts.items():
            data, training = part.data, part.training or Training()
            if training.base_lr is not None:
                yield (
                    f"{path}training.base_lr would train the base, which all adapters have in "
                    "common; leave it out"
                )
            options = {"eval_every": training.eval_every, "patience": training.patience}
            for option, value in options.items():
                if value is not None and data is not None and data.dev is None:
                    yield (
                        f"{path}training.{option} needs rows to evaluate on; give {path}data.dev, "
                        "or leave it out"
                    )
        adapters: dict[str, Method] = {}
        for name in self.trained():
            spec = self.adapter_spec(name).exported()
            if isinstance(spec, Method):
                adapters[name] = spec
            else:
                yield (
                    f"adapters.{name}: a fusion is made of adapters alone, and {spec!r} is a sum; "
                    "give one adapter as its method"
                )
        try:
            if adapters:
                Fusion(adapters=tuple(adapters.values()), names=tuple(adapters))
        except InlayError as error:
            yield str(error)

    @staticmethod
    def load(path: str | Path | None, overrides: Mapping[str, str] | None = None) -> FuseRecipe:
        """Read a recipe from a file; arguments as in `Recipe.load`."""
        return read(FuseRecipe, path, overrides)

    def dump(self) -> str:
        """The recipe as YAML, with every default; `load` reads it back."""
        return yaml.write(self.model_dump(mode="json"))

    def trained(self) -> dict[str, Adapter]:
        """The adapters that are trained in the first stage."""
        return {name: part for name, part in self.adapters.items() if part.file is None}

    def adapter_spec(self, name: str) -> Spec:
        """What is trained for an adapter."""
        return parse(self.adapters[name].method or self.method or DEFAULT_METHOD)

    def adapter_path(self, name: str) -> Path:
        """The file of an adapter, which is there when the first stage is over."""
        file = self.adapters[name].file
        return self._folder(name) / f"{name}.safetensors" if file is None else Path(file)

    @property
    def start_path(self) -> Path:
        """The file of the fusion before its training."""
        return Path(self.out) / ADAPTERS / START

    def stage_one(self, name: str) -> Recipe:
        """The recipe that trains an adapter."""
        part = self.adapters[name]
        return Recipe.model_validate(
            {
                "base": self.base,
                "dtype": self.dtype,
                "quantize": self.quantize,
                "method": part.method or self.method or DEFAULT_METHOD,
                "name": name,
                "task": part.task,
                "data": part.data,
                "training": part.training or Training(),
                "out": str(self._folder(name)),
                "seed": self.seed if part.seed is None else part.seed,
            }
        )

    def stage_two(self, spec: Spec) -> Recipe:
        """The recipe that trains the fusion; it starts from the file `start_path`."""
        return Recipe.model_validate(
            {
                "base": self.base,
                "dtype": self.dtype,
                "quantize": self.quantize,
                "method": repr(spec),
                "name": self.name,
                "start": str(self.start_path),
                "task": self.task,
                "data": self.data,
                "training": self.training,
                "out": self.out,
                "seed": self.seed,
            }
        )

    def _folder(self, name: str) -> Path:
        return Path(self.out) / ADAPTERS / name
