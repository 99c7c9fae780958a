"""What a learner gets wrong: in each example call, one argument after the other gets wrong values.

`python tests/mistakes.py act` lists what fails in a module, with counts; test_wrong_arguments.py
tests it.
"""

import copy
import importlib.util
import inspect
import numbers
import random
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

EXAMPLES = Path(__file__).parent / "examples"
SECONDS = 3  # of the processor, for one call
SHAPES = ("axis more", "axis fewer", "axes swapped", "width")


class Legal(NamedTuple):
    "An example value with the mistakes that are none here, each by its name or its value."

    value: object
    legal: tuple


def ok(value, *legal) -> Legal:
    "`value`, where the mistakes `legal` are allowed: `ok(0.1, 0, 1.5)`, `ok(state, None)`."
    return Legal(value, legal)


def free(value, *legal) -> Legal:
    "A tensor whose shape nothing fixes."
    return Legal(value, (*SHAPES, *legal))


def words(value: str, *legal) -> Legal:
    "A text that may say anything."
    return Legal(value, ("misspelt", *legal))


class Call:
    "One call of a public name with all its arguments by keyword."

    def __init__(self, f: Callable, /, **arguments):
        self.f, self.after = f, lambda result: result
        plain = lambda v: v.value if isinstance(v, Legal) else v
        self.legal = {k: v.legal if isinstance(v, Legal) else () for k, v in arguments.items()}
        self.arguments = {k: plain(v) for k, v in arguments.items()}

    def then(self, after: Callable) -> "Call":
        "`after(result)` is compared in place of the result; make its tensors before, not in it."
        self.after = after
        return self

    def __call__(self):
        return self.after(self.f(**self.arguments))

    def optional(self, argument: str) -> bool:
        "Whether None is what stands there by default."
        f = self.f.forward if isinstance(self.f, nn.Module) else self.f
        known = inspect.signature(f).parameters.get(argument)
        return known is not None and known.default is None


# ---- wrong values, by the kind of the right one ----


def tensors(x) -> list[Tensor]:
    "The tensors in `x`, those of a module's parameters and buffers among them."
    if isinstance(x, nn.Module):
        return [*x.parameters(), *x.buffers()]
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]


def _first(x: Tensor, value) -> Tensor:
    "A copy with `value` as its first entry."
    x = x.detach().clone(memory_format=torch.contiguous_format)
    x.view(-1)[:1] = value
    return x


def _tensor(x: Tensor) -> dict:
    d = x.detach()
    wrong = {
        "list": d.tolist,
        "array": d.numpy,
        "bool": d.bool,
        "meta": lambda: d.to("meta"),
        "zero rows": lambda: d[:0],
        "axis more": lambda: d[None],
        "axis fewer": lambda: d[0],
        "axes swapped": lambda: d.transpose(-1, -2),
        "width": lambda: d[..., :-1],
        "rows": lambda: d[:-1],
    }
    if x.is_floating_point():
        wrong |= {"int": d.long, "float64": d.double, "half": d.half}
        wrong["nan"] = lambda: _first(d, torch.nan)
    elif x.dtype == torch.bool:
        del wrong["bool"]
        wrong |= {"int": d.long, "float": d.float}
    else:
        wrong |= {"float": d.float, "int32": d.int}
        wrong |= {"entry -1": lambda: _first(d, -1), "entry past the end": lambda: _first(d, 10**6)}
        if x.dtype == torch.uint8:
            del wrong["entry -1"], wrong["entry past the end"]
    if x.ndim < 2:
        del wrong["axes swapped"]
    if x.ndim < 1:
        for tag in ("zero rows", "axis fewer", "width", "rows"):
            del wrong[tag]
    return wrong


def _tag(value) -> str:
    return "10**30" if value == 10**30 else str(value)


def _number(x) -> dict:
    wrong = {"text": lambda: str(x), "list": lambda: [x]}
    for value in (-1, 0, True, 1.5, float("nan"), float("inf"), 10**30):
        wrong[_tag(value)] = lambda value=value: value
    return wrong


def _returning(f, change: Callable):
    "`f` whose results are changed; a module stays one."
    if not isinstance(f, nn.Module):
        return lambda *args, **kwargs: change(f(*args, **kwargs))
    module = copy.deepcopy(f)
    forward = module.forward
    module.forward = lambda *args, **kwargs: change(forward(*args, **kwargs))
    return module


def _callable(f) -> dict:
    less = lambda t: t[:-1] if t.ndim else t
    as_list = lambda out: (
        list(out) if isinstance(out, tuple) else tree_map_only(Tensor, Tensor.tolist, out)
    )
    wrong = {
        "text": lambda: "x",
        "number": lambda: 3,
        "class": lambda: type(f) if isinstance(f, nn.Module) else nn.Linear,
    }
    if type(f).__module__.startswith("ponderlearn."):  # ours: it returns what it should
        return wrong
    return wrong | {
        "returns nothing": lambda: _returning(f, lambda out: None),
        "returns a row less": lambda: _returning(f, lambda out: tree_map_only(Tensor, less, out)),
        "returns a list": lambda: _returning(f, as_list),
    }


def _sequence(x) -> dict:
    wrong = {"text": lambda: "x", "number": lambda: 3, "empty": lambda: type(x)()}
    if hasattr(x, "_fields"):
        wrong["empty"] = tuple
        replaced = lambda value: x._replace(**{x._fields[-1]: value})
    else:
        wrong["entry less"] = lambda: x[:-1]
        replaced = lambda value: type(x)([*x[:-1], value])
    if x:
        wrong["first alone"] = lambda: x[0]
        wrong["None inside"] = lambda: replaced(None)
    if x and isinstance(x[-1], Tensor):
        inside = _tensor(x[-1])
        for tag in ("rows", "width", "meta", "half", "axis fewer", "list"):
            if tag in inside:
                wrong[f"{tag} inside"] = lambda tag=tag: replaced(inside[tag]())
    return wrong


def _mapping(x) -> dict:
    first = next(iter(x))
    return {
        "text": lambda: "x",
        "list": lambda: list(x.items()),
        "empty": dict,
        "misspelt key": lambda: {f"{first}x": x[first], **{k: x[k] for k in x if k != first}},
        "None inside": lambda: {**x, first: None},
    }


def wrong_values(x) -> dict[str, Callable]:
    "Name of each mistake -> a function that makes the wrong value for the right one `x`."
    none = {"None": lambda: None}
    if isinstance(x, Tensor):
        return none | {"text": lambda: "x"} | _tensor(x)
    if isinstance(x, (bool, np.bool_)):
        return none | {"text": lambda: "no", "empty": list, "number": lambda: 2}
    if isinstance(x, numbers.Number):
        return none | _number(x)
    if isinstance(x, str):
        return none | {"misspelt": lambda: x + "x", "number": lambda: 3, "list": lambda: [x]}
    if isinstance(x, Path):
        return none | {"list": lambda: [x], "number": lambda: 3.5}
    if isinstance(x, torch.Generator):
        numpy = lambda: np.random.default_rng(0)
        made = {"seed": lambda: 0, "text": lambda: "x", "class": lambda: torch.Generator}
        return none | made | {"NumPy's": numpy}
    if isinstance(x, torch.device):
        made = {"dtype": lambda: torch.float16, "misspelt": lambda: "nowhere"}
        return none | made | {"number": lambda: 1.5}
    if isinstance(x, torch.dtype):
        made = {"text": lambda: "float32", "integer": lambda: torch.int64}
        return none | made | {"device": lambda: torch.device("cpu")}
    if isinstance(x, type):
        return none | {
            "text": lambda: "x",
            "number": lambda: 3,
            "function": lambda: lambda *a: None,
        }
    if callable(x):
        return none | _callable(x)
    if isinstance(x, Mapping):
        return none | _mapping(x)
    if isinstance(x, (tuple, list)):
        return none | _sequence(x)
    return none | {"text": lambda: "x", "number": lambda: 3, "class": lambda: type(x)}


def _tried(call: Call, argument: str) -> dict[str, Callable]:
    "The mistakes that are tried in one argument of a call."
    x = call.arguments[argument]
    wrong = wrong_values(x)
    others = [t for k, v in call.arguments.items() if k != argument for t in tensors(v)]
    owner = call.f if isinstance(call.f, nn.Module) else getattr(call.f, "__self__", None)
    others += tensors(owner) if isinstance(owner, nn.Module) else []
    if not others:  # nothing that the tensor could disagree with
        wrong = {tag: f for tag, f in wrong.items() if not tag.startswith("meta")}
    rows = {len(t) for k, v in call.arguments.items() if k != argument for t in _rows(v)}
    if isinstance(x, Tensor) and x.ndim and len(x) not in rows:
        wrong.pop("rows", None)
    if call.optional(argument):
        wrong.pop("None")
    legal = {_tag(v) for v in call.legal[argument]}
    return {tag: f for tag, f in wrong.items() if tag not in legal}


def _rows(x) -> list[Tensor]:
    return [] if isinstance(x, nn.Module) else [t for t in tensors(x) if t.ndim]


# ---- what came of a call ----


class Slow(BaseException):
    "A call that does not end soon."


def _alarm(*_):
    raise Slow


def freeze(x, depth: int = 4):
    "What is compared of a result: tensors, numbers and texts, nested."
    if isinstance(x, Tensor):
        where = x.device.type
        return ("tensor", where, None if where == "meta" else x.detach().clone(), tuple(x.shape))
    if isinstance(x, (np.ndarray, np.generic)):
        return ("array", x.tolist()) if x.dtype == object else freeze(torch.as_tensor(x))
    if isinstance(x, numbers.Number):
        return freeze(torch.tensor(x, device="cpu"))
    if x is None or isinstance(x, (str, bytes, Path)):
        return x
    if isinstance(x, nn.Module):
        state = {k: freeze(v) for k, v in (x.state_dict() | dict(x.named_buffers())).items()}
        settings = {}
        for name, part in x.named_modules():
            settings |= {f"{name}.{k}": v for k, v in vars(part).items() if k[0] != "_"}
        plain = (bool, int, float, str, type(None), tuple, list)
        return state, {k: freeze(v, depth - 1) for k, v in settings.items() if isinstance(v, plain)}
    if depth == 0:
        return type(x).__name__
    if isinstance(x, Mapping):
        return {str(k): freeze(v, depth - 1) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return [freeze(v, depth - 1) for v in x]
    if hasattr(x, "to_dict") and hasattr(x, "columns"):
        return freeze(x.to_dict("list"), depth)
    if type(x).__module__.startswith("ponderlearn") and hasattr(x, "__dict__"):
        return freeze({k: v for k, v in vars(x).items() if not callable(v)}, depth - 1)
    return type(x).__name__


def _is_tensor(x) -> bool:
    return isinstance(x, tuple) and len(x) == 4 and x[0] == "tensor"


def leaves(x) -> list:
    "The frozen tensors of a frozen result."
    if _is_tensor(x):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def same(a, b, loose: bool = False) -> bool:
    "Whether two frozen results are equal, tensors up to their dtype."
    if _is_tensor(a) and _is_tensor(b):
        if a[1] != b[1] or a[3] != b[3] or a[1] == "meta":
            return False
        tol = 2e-2 if loose else 1e-4
        wide = torch.complex128 if a[2].is_complex() or b[2].is_complex() else torch.float64
        pair = a[2].to(wide), b[2].to(wide)
        return torch.allclose(*pair, rtol=tol, atol=tol, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], loose) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(p, q, loose) for p, q in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002, what older libraries draw from
    random.seed(0)


def fresh(make: Callable) -> Call:
    "The example call with new arguments, always the same."
    _seed()
    call = make()
    _seed()
    return call


def guarded(f: Callable, seconds: float | None = None):
    "The frozen result of `f()`, or Slow after some seconds; without warnings."
    before = signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, seconds or SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return freeze(f())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


RELATED = {*SHAPES, "rows", "zero rows", "meta", "half", "float64", "returns a row less"}
RELATED |= {"empty", "entry less", "misspelt key"}


def names(error: BaseException, call: Call, argument: str, tag: str) -> bool:
    "Whether the message says which argument; where two do not fit together, either will do."
    text = str(error)
    value = call.arguments[argument]
    if isinstance(error, OSError):
        return str(value) in text or argument in text
    if not isinstance(error, (ValueError, TypeError, IndexError, RuntimeError)):
        return False
    if tag == "misspelt" and f"{value!r}" in text:
        return True
    said, must, _ = text.partition(" must ")
    if not must or "(): argument" in said:
        return False
    related = tag.removesuffix(" inside") in RELATED
    wanted = list(call.arguments) if related else [argument]
    if isinstance(value, (str, Path)):
        wanted += [str(value), Path(value).name]
    return any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", said) for w in wanted)


def outcome(make: Callable, argument: str, tag: str, right) -> tuple[str, str]:
    "What one mistake leads to: 'named', 'same', 'insides', 'silent' or 'slow', and in words."
    call = fresh(make)
    call.arguments[argument] = wrong_values(call.arguments[argument])[tag]()
    try:
        result = guarded(call)
    except Slow:
        return "slow", f"runs longer than {SECONDS} s"
    except Exception as error:
        words = f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0]
        if names(error, call, argument, tag):
            return "named", words
        if "Cannot copy out of meta tensor" in words:  # it was moved to where the others are
            return "same", words
        if tag.startswith("entry") and isinstance(error, (IndexError, RuntimeError, ValueError)):
            return (
                "named",
                words,
            )  # values are looked at where data enter; torch's own words will do
        return "insides", words[:160]
    if same(right, result, loose=tag.startswith("half")):
        return "same", ""
    numbers_ = [leaf for leaf in leaves(result) if leaf[2] is not None]
    nan = [bool(leaf[2].isnan().any()) for leaf in numbers_]
    if tag == "nan" and nan and nan[0]:
        return "same", "NaN for NaN"
    if tag == "zero rows" and not any(nan):
        return "same", "nothing for nothing"
    return "silent", "NaN" if any(nan) else "another result"


# ---- all examples of a module ----


class Failure(NamedTuple):
    name: str
    argument: str
    mistake: str
    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}({self.argument}={self.mistake}): {self.kind}: {self.words}"


def examples(module: str):
    "The file tests/examples/MODULE.py: its EXAMPLES and what it allows."
    spec = importlib.util.spec_from_file_location(f"examples_{module}", EXAMPLES / f"{module}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def try_mistakes(name: str, make: Callable, count: Counter | None = None) -> list[Failure]:
    "The mistakes in one example call that are neither refused by name nor without effect."
    count, failures = Counter() if count is None else count, []
    right = guarded(fresh(make), 60)  # what it imports takes time
    call = fresh(make)
    for argument in call.arguments:
        for tag in _tried(call, argument):
            kind, words = outcome(make, argument, tag, right)
            count[kind] += 1
            if kind not in ("named", "same"):
                failures.append(Failure(name, argument, tag, kind, words))
    return failures


def follows(make: Callable) -> str:
    "What is wrong in the example where new tensors lie on the device meta by default, or ''."
    right = guarded(fresh(make), 60)  # what it imports takes time
    call = fresh(make)

    def there():
        with torch.device("meta"):
            return call()

    try:
        result = guarded(there)
    except Slow:
        return f"runs longer than {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if any(leaf[1] == "meta" for leaf in leaves(result)):
        return "a result on the device meta"
    return "" if same(right, result) else "another result"


def has_device(call: Call) -> bool:
    "Whether a tensor, module or generator in the call says where results lie."
    owner = call.f if isinstance(call.f, nn.Module) else getattr(call.f, "__self__", None)
    values = [*call.arguments.values(), owner]
    return any(isinstance(v, (nn.Module, torch.Generator)) or tensors(v) for v in values)


def public_names(module) -> list[str]:
    "Functions, classes but for plain results, and their public methods: all with arguments."
    found = []
    for name in module.__all__:
        x = getattr(module, name)
        home = getattr(x, "__module__", None) or ""
        if home != module.__name__ and home.startswith("ponderlearn.") and "._" not in home:
            continue  # another public module's, handed on
        if isinstance(x, type):
            plain = issubclass(x, (tuple, BaseException))
            found += [] if plain else [name]
            owners = [c for c in x.__mro__ if c.__module__.startswith("ponderlearn")]
            for key in dict.fromkeys(k for c in owners for k in vars(c) if k[0] != "_"):
                f = getattr(x, key)  # a function, or a class method bound to x
                own = inspect.isfunction(f) or inspect.ismethod(f)
                if own and len(inspect.signature(f).parameters) > inspect.isfunction(f):
                    found.append(f"{name}.{key}")
        elif callable(x) and inspect.signature(x).parameters:
            found.append(name)
    return found


def main() -> None:
    "Print what fails in the modules named, the most frequent mistakes first."
    total = Counter()
    for module in sys.argv[1:] or sorted(p.stem for p in EXAMPLES.glob("[a-z]*.py")):
        count, failures = Counter(), []
        listed = examples(module)
        for name, make in listed.EXAMPLES.items():
            failures += try_mistakes(name, make, count)
            if has_device(fresh(make)) and (words := follows(make)):
                failures.append(Failure(name, "", "under torch.device('meta')", "device", words))
        often = Counter(f.mistake for f in failures)
        for f in sorted(failures, key=lambda f: (-often[f.mistake], f.mistake)):
            if (f.name, f.argument, f.mistake) not in listed.ALLOWED:
                print(f)
        print(f"{module}: {sum(count.values())} calls, {dict(count)}, {len(failures)} failures")
        total += count
    print(f"all: {sum(total.values())} calls, {dict(total)}")


if __name__ == "__main__":
    main()
