"""`bitnet show`: what a model is, what it needs, and whether it fits here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitnet_benchmarks.need import Need, needs

from .. import amounts, models
from ..console import FLAGS, Flags, mark, pairs, table
from ..models import ModelName

if TYPE_CHECKING:
    from bitnet_core import Model
    from bitnet_core.hub import Description


def show(model: ModelName, *, remote: bool = False, flags: Flags = FLAGS) -> None:
    """What a model is, what it needs, and whether it fits here.

    Parameters
    ----------
    remote
        Ask the hub, even where the model is on this machine.
    """
    from bitnet_core import HubError, hub  # noqa: PLC0415

    if not models.is_local(model):
        models.check_name(model)
        if remote or not _is_cached(model):
            known = hub.describe(model)
            flags.answer(known, _offered(known))
            return
    elif remote:
        raise HubError(f"{model}: is on this machine, and no name on the hub")
    path = models.find(model, flags)
    found = models.load(str(path), flags)
    need = needs(found, min(found.spec.context, 4096))
    record = {
        "path": path,
        "parameters": models.parameters(found.spec),
        "spec": found.spec,
        "tokens": found.tokenizer.vocab_size if found.tokenizer else None,
        "template": found.template is not None,
        "sampling": found.sampling,
        "need": need,
    }
    flags.answer(record, pairs(_lines(str(path), found, need)))


def _is_cached(name: str) -> bool:
    from bitnet_core import HubError, hub  # noqa: PLC0415

    try:
        hub.resolve(name, offline=True)
    except HubError:
        return False
    return True


def _lines(path: str, found: Model, need: Need) -> dict[str, Any]:
    spec = found.spec
    enough = need.total <= need.available
    tokens = f"{found.tokenizer.vocab_size:,}" if found.tokenizer else "no"
    extras = [
        f"sub-norms: {spec.sub_norms}" if spec.sub_norms != "none" else "",
        "q/k norms" if spec.qk_norm else "",
        "windows" if spec.windows else "",
        "tied head" if spec.tied else "",
    ]
    return {
        "model": path,
        "family": spec.family,
        "parameters": amounts.amount(models.parameters(spec)),
        "layers": f"{spec.layers}, {spec.hidden_size} wide, feed-forward {spec.ffn_size} ({spec.activation})",
        "attention": f"{spec.heads} heads of {spec.head_size}, {spec.kv_heads} for keys and values",
        "extras": ", ".join(filter(None, extras)) or None,
        "context": f"{spec.context:,} tokens",
        "vocabulary": f"{spec.vocab_size:,} rows, {tokens} tokens",
        "chat": "has a template" if found.template else "no template: a model that completes text",
        "sampling": ", ".join(f"{k} {v:g}" for k, v in found.sampling.items()) or None,
        "weights": amounts.size(need.weights),
        "memory": mark(
            enough,
            f"{amounts.size(need.total)} with {need.context:,} tokens of context, {amounts.size(need.available)} free",
        ),
    }


def _offered(known: Description) -> Any:
    from rich.console import Group  # noqa: PLC0415

    files = table("file", "size", "", numbers=(1,))
    needed = {file.name for file in known.needed}
    for file in known.files:
        files.add_row(file.name, amounts.size(file.size), "needed" if file.name in needed else "")
    said = {
        "model": f"{known.name}@{known.revision[:12]}",
        "licence": known.licence or "not stated",
        "gated": "yes: log in and accept its terms" if known.gated else None,
        "kind": mark(True, "ternary") if known.ternary else mark(None, "does not look ternary"),
        "fetch": amounts.size(known.size) if known.needed else f"name one of {len(known.choices)} files",
    }
    return Group(pairs(said), files)
