"""Which exchange on how many devices an operator meets.

By default an operator meets each exchange once and 2, 4 and 8 devices once,
others than the rows beside it in the table; where a core stands for it, it
meets one of the three.  One operator of every kind of transition also meets
each exchange without ids.  --full runs the whole cross.
"""

from tests.conformance import table

# Small shards step by step, where less compiles.
CONFIGURATIONS = (
    dict(devices=2, check_vma=True, inside=True),
    dict(devices=4, check_vma=False),
    dict(devices=8, check_vma=True, form="recurrent"),
)
DEVICES = (2, 4, 8)
EXCHANGES = ("all_gather", "prefix_scan", "ring")
# One of each kind of transition: identity, scalar, diagonal, elementwise (here
# complex) and dense.
REPRESENTATIVES = (
    "linear_attention",
    "gated_linear_attention_scalar",
    "gated_linear_attention_channel",
    "linear_recurrence_complex",
    "delta_rule_scalar",
)


def configured(operator, options):
    """Options of a configuration as the operator takes them."""
    options = {"form": "chunk"} | options
    form = options.pop("form")
    if options["exchange"] not in operator.exchanges:
        options["exchange"] = operator.exchanges[0]
    chunk_only = options["exchange"] in operator.chunk_exchanges
    if form not in operator.forms or chunk_only:
        form = operator.default_form()
    if form is None:
        return options
    chunk = 16 if form == "chunk" else None
    return options | {"form": form, "chunk_size": chunk}


def short(options):
    """What tells a configuration from others, for the test's name."""
    parts = [options["exchange"], options["devices"], options.get("form")]
    parts += ["unpacked"] if options.get("packed") is False else []
    return "-".join(str(x) for x in parts if x is not None)


def standard(operator):
    """CONFIGURATIONS with an exchange each, turned from row to row."""
    turn = table.OPERATORS.index(operator)
    for place, options in enumerate(CONFIGURATIONS):
        options = options | {"exchange": EXCHANGES[(place + turn) % 3]}
        if not operator.stands_alone():  # the check that rows can fail
            options["check_vma"] = True
        yield configured(operator, options)


def by_default(operator):
    """The part of `standard` and `cross` that runs without --full."""
    chosen = list(standard(operator))
    if not operator.stands_alone():
        chosen = chosen[table.OPERATORS.index(operator) // 3 % 3 :][:1]
    if operator.name in REPRESENTATIVES:
        chosen += [c for c in cross(operator) if not c["packed"]]
    return chosen


def cross(operator):
    """The exchanges on 2, 4 and 8 devices that `standard` leaves out.

    Each exchange also runs without ids, which is another program.
    """
    taken = {(c["exchange"], c["devices"]) for c in standard(operator)}
    for exchange in operator.exchanges:
        free = [n for n in DEVICES if (exchange, n) not in taken]
        free = free or DEVICES[-1:]
        for devices in free:
            options = dict(
                exchange=exchange,
                devices=devices,
                check_vma=devices != 4,
                packed=devices != free[-1],
            )
            yield configured(operator, options)
