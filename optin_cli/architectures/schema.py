"""Schema of architecture descriptions: where a model family keeps what can be pruned.

One rule covers every weight that a group touches: axis length = parts x units x unit width. `model/resolve.py` checks
each name and shape against a model.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

OutputKind = Literal["categorical", "bernoulli", "real"]
Layout = Literal["BTC", "TBC", "BHWC", "BCHW"]
LibraryName = Literal["transformers", "timm"]
Width = int | str | list[int | str]
"""A number, an attribute that holds it, or several whose product it is."""
Purpose = Literal[
    "classification",
    "multi-label",
    "regression",
    "similarity",
    "question-answering",
    "token-classification",
    "fill-mask",
    "replaced-token-detection",
    "multiple-choice",
    "next-token-prediction",
    "semantic-segmentation",
]
"""What a model is for: every kind of task, and purposes that no task measures yet."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SliceRule(_Strict):
    """Parameters (paths relative to the block) of which one axis carries the units.

    A listed parameter that is None in the model (a Linear without bias) is passed over; one whose module
    does not exist is an error unless `optional`. unit_width: entries of a unit here, where they are not the group's.
    parts: how many parts of that width there are one after another, or the width of a unit in each.
    """

    parameters: list[str] = Field(min_length=1)
    axis: int = Field(ge=0)
    parts: Annotated[int, Field(ge=1)] | Annotated[list[Width], Field(min_length=1)] = 1
    unit_width: Width | None = None
    optional: bool = False


class QueryKeyRule(_Strict):
    """Linear layers whose outputs attention multiplies, head by head: their products alone matter, not their basis.

    query, key: modules; where one layer gives both, queries are the first of its `parts` and keys the second. when:
    modules, and the class names of which each must be, such as of norms that would see single dimensions.
    """

    query: str
    key: str
    when: dict[str, list[str]] = {}


class ConfigKeyRule(_Strict):
    """A key of the library's own config, and its value when every block of the stack keeps `units` units of the group.

    The value is per_unit x units (a number, or an attribute that holds it), divided by the attribute `over` where a
    config states a ratio; or, whatever is kept, the attribute `fixed`. divides: an attribute that it must divide.
    """

    per_unit: float | str | None = None
    over: str | None = None
    fixed: str | None = None
    divides: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ConfigKeyRule:
        if (self.per_unit is None) == (self.fixed is None):
            raise ValueError("give either per_unit or fixed")
        return self


class ConfigRule(_Strict):
    """How the library's own config states that all blocks have the same, smaller number of units.

    step: counts are multiples of it, where a ratio must be whole; a number, or the attribute that holds it.
    """

    keys: dict[str, ConfigKeyRule] = Field(min_length=1)
    step: int | str = 1


class EmptyRule(_Strict):
    """How a module computes once its group has no unit left and its own forward cannot run.

    The module then returns a zero-wide tensor, passed through its child `consumer` (giving the bias) and,
    with `norm`, through residual and normalisation; as a tuple of `returns` items unless 0. `remove`: modules of
    the block that served only the units that are gone.
    """

    module: str
    consumer: str | None = None
    norm: str | None = None
    remove: tuple[str, ...] = ()
    returns: int = Field(0, ge=0)


class SelectRule(_Strict):
    """An argument of a module's forward whose `axis` runs over the units, such as a bias shared by all layers.

    The module "" is the block itself. An axis of length 1 stands for all units alike. per_row: whether the axis runs
    over the units of one sample after another.
    """

    module: str
    argument: str
    axis: int = Field(ge=0)
    per_row: bool = False


class GroupRule(_Strict):
    """One prunable axis of a block.

    Paths are relative to the block, or begin with "@next" or "@NAME" (see `StackRule`).

    name: what distinguishes it in its block; its kind where None.
    types: class names of the blocks that have this group; all have it where empty. when: modules, and the class names
    of which each must be for the block to have this group, or attributes and what they must be. unless: the same, of
    which any keeps a block from having it.
    gate: the module whose input is masked, where something between it and the consumer mixes units
    (squeeze-and-excitation); the consumer itself where None.
    inside: what `gate` is where units pass within it, by `model/experts.py`. reads: the parameter by which the
    consumer reads units, where that is not its `weight`.
    residual_sum: the module whose input is the consumer's output, possibly scaled and rearranged, plus the
    residual stream; None where that sum is the block's output. residual: false where there is no such stream.
    rows: axis of the consumer's input and output that holds the samples.
    unit_width: columns of a unit.
    least: fewest units that the block can run with, or an attribute that holds that number. count: an attribute that
    holds the number of units, where none holds the width of one. attend: an attention whose own forward takes its
    input's width for its heads', or reads its consumer's weights without calling it.
    query_key: of heads whose queries and keys meet in a plain inner product, so that they can have fewer dimensions.
    set_units, set_width, set_each: attributes that hold the number of units, that of columns, or so many for each unit;
    one of a module's config changes for that module alone.
    constant: modules with slices that cost as many MACs for any number of units.
    norms: root mean square norms over the columns of all units, each with a slice of its weight.
    config: None where the library's config cannot state that there are fewer units.
    """

    kind: Literal["head", "neuron", "channel", "expert"]
    name: str | None = None
    types: list[str] = []
    when: dict[str, list[str]] = {}
    unless: dict[str, list[str]] = {}
    consumer: str
    gate: str | None = None
    inside: Literal["router", "experts"] | None = None
    reads: str | None = None
    residual_sum: str | None = None
    residual: bool = True
    rows: int = Field(0, ge=0)
    least: Annotated[int, Field(ge=0)] | str = 0
    unit_width: Width = 1
    count: str | None = None
    slices: list[SliceRule] = Field(min_length=1)
    set_units: list[str] = []
    set_width: list[str] = []
    set_each: dict[str, Width] = {}
    norms: list[str] = []
    mixer: str | None = None
    constant: list[str] = []
    select: list[SelectRule] = []
    attend: str | None = None
    empty: EmptyRule | None = None
    query_key: QueryKeyRule | None = None
    config: ConfigRule | None = None

    @model_validator(mode="after")
    def _check(self) -> GroupRule:
        if self.query_key is not None and (self.kind != "head" or not isinstance(self.unit_width, str)):
            raise ValueError("query_key needs heads whose unit_width is an attribute")
        return self


class TokenRule(_Strict):
    """How tokens may merge between the blocks of a stack, whose first argument and output are hidden states.

    argument: of a block's forward, what is added to the attention scores. special: parameters (paths relative to the
    base model) of shape (1, n, width) whose n tokens stand before all others and never merge; those a model lacks
    count nothing.
    """

    argument: str
    special: list[str]


class DepthRule(_Strict):
    """How the library's config states how many blocks a stack has, any of which may go.

    count: its key. per_block: keys that hold one value for each block, where a config has them.
    """

    count: str
    per_block: list[str] = []


class StackRule(_Strict):
    """An ordered run of blocks; `*` in `blocks` stands for the index of a module list.

    types: class names of the modules that are blocks; all that fit the pattern where empty. optional: whether a model
    may lack the stack, such as one of several backbones. of_head: whether `blocks` and `after_last` are paths in the
    whole model, outside the base model.
    "@next" in a group's paths is the next block of the stack, for the last one `after_last`. "@NAME" is the first
    module between a block and the next whose class is among `between[NAME]`. tokens: None where they cannot merge.
    depth: None where blocks cannot go as a whole.
    """

    name: str
    blocks: str
    types: list[str] = []
    optional: bool = False
    of_head: bool = False
    after_last: str | None = None
    between: dict[str, list[str]] = {}
    layout: Layout = "BTC"
    tokens: TokenRule | None = None
    depth: DepthRule | None = None
    groups: list[GroupRule] = Field(min_length=1)


class BackboneRule(_Strict):
    """Stacks of another family, whose base model lies at the path `at` in models that have it as a backbone.

    earlier_at: where it lay in earlier versions of the library, if elsewhere.
    """

    stacks_of: str
    at: str
    earlier_at: str | None = None


class DecisionRule(_Strict):
    """An item of what a module returns that it decides by comparing numbers, such as a mask of pixels to attend to.

    Rounding may decide otherwise, and what follows then differs by more than rounding. module: a path relative to the
    base model.
    """

    module: str
    item: int = Field(ge=0)


class RefusalRule(_Strict):
    """Class names of modules with which no model of the family can be pruned.

    which: why, as in "its mlp is a CLASS, which …".
    """

    types: list[str] = Field(min_length=1)
    which: str


class RowsRule(_Strict):
    """A number that follows from the rows of a parameter, divided by `parts` and by the attribute `over` if given."""

    rows: str
    parts: int = Field(default=1, ge=1)
    over: str | None = None


class NeedRule(_Strict):
    """Something without which a version of the library computes something else, although it builds the same weights.

    path: of a parameter that has to be there, or of an attribute that has to have the value it has in our model.
    since: the first version where that holds. unless: the value with which earlier versions compute the same.
    """

    path: str
    since: str
    unless: bool | int | str | None = None


class EarlierRule(_Strict):
    """How earlier versions of the library built models of a family, so that pruned folders load there too.

    Paths are relative to the base model; `*` stands for one component, such as an index.

    names: our modules, parameters or attributes, and their names there. Of those that begin a path the longest counts;
    a path that none begins is the same there. Layers of ours that have one name there are one, with the rows of all.
    sizes: attributes there that have no counterpart here. empty: modules of ours that may be emptied, and the rule
    there. arguments: modules of ours of which arguments are selected, and the names of these there. config: keys that
    the library's config had, and the dotted keys under which ours has their values. absent: dotted keys inside those
    values, and what each is where earlier configs lack the whole. unread: dotted keys of ours that these models never
    read, and that classes there refuse. needs: what some models have under the same path here and there, and that
    classes there may lack or ignore. since: the first version that builds such models as described; None where all that
    optin works with do.
    """

    names: dict[str, str] = {}
    sizes: dict[str, RowsRule] = {}
    empty: dict[str, EmptyRule] = {}
    arguments: dict[str, dict[str, str]] = {}
    config: dict[str, str] = {}
    absent: dict[str, str] = {}
    unread: list[str] = []
    needs: list[NeedRule] = []
    since: str | None = None

    def under(self, here: str, there: str) -> EarlierRule:
        """The rule for paths in a model in which what these are relative to lies at `here`, and lay at `there`."""

        def at(owner: str, path: str) -> str:
            return ".".join(filter(None, (owner, path)))

        return EarlierRule(
            names={
                **({here: there} if here != there else {}),
                **{at(here, ours): at(there, theirs) for ours, theirs in self.names.items()},
            },
            sizes={
                at(there, path): size.model_copy(
                    update={"rows": at(there, size.rows), "over": size.over and at(there, size.over)}
                )
                for path, size in self.sizes.items()
            },
            empty={
                at(here, ours): rule.model_copy(update={"module": at(there, rule.module)})
                for ours, rule in self.empty.items()
            },
            arguments={at(here, ours): names for ours, names in self.arguments.items()},
            config=self.config,
            absent=self.absent,
            unread=self.unread,
            needs=[need.model_copy(update={"path": at(here, need.path)}) for need in self.needs],
            since=self.since,
        )

    def beside(self, other: EarlierRule) -> EarlierRule:
        """Both rules."""
        return EarlierRule(
            names={**self.names, **other.names},
            sizes={**self.sizes, **other.sizes},
            empty={**self.empty, **other.empty},
            arguments={**self.arguments, **other.arguments},
            config={**self.config, **other.config},
            absent={**self.absent, **other.absent},
            unread=[*self.unread, *other.unread],
            needs=[*self.needs, *other.needs],
            since=self.since or other.since,
        )


class Architecture(_Strict):
    """A model family: its own `stacks`, or those of the family named by `stacks_of` where they are the same.

    `model_types` are what the library tells its models apart by: config.model_type of transformers, the name of the
    model's class of timm. refused_types: those that look alike but cannot be pruned, and why. first: the first versions
    of the library that build a model type as described, where people use some that lack it. backbones: families that
    models of this one may have in front of its own stacks. earlier: how the library built such models before; that of
    backbones and of `stacks_of` is added.
    """

    family: str
    library: LibraryName
    model_types: list[str] = Field(min_length=1)
    refused_types: dict[str, str] = {}
    first: dict[str, str] = {}
    backbones: list[BackboneRule] = []
    stacks: list[StackRule] = []
    decisions: list[DecisionRule] = []
    refusals: list[RefusalRule] = []
    earlier: EarlierRule | None = None
    stacks_of: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Architecture:
        if bool(self.stacks or self.backbones) == bool(self.stacks_of):
            raise ValueError("give either stacks or stacks_of; backbones are stacks too")
        return self


class OutputRule(_Strict):
    """A model output that scoring compares: its key, distribution, and which axis after the batch holds classes.

    `over` is "classes" when `axis` holds the distribution (one per token, query or pixel if there are more axes),
    "tokens" when it runs over the positions of the sequence, "each-token" when every position has one of its own, and
    "entries" when every entry has, such as each pixel of each query's mask. weight: by which lambda is multiplied for
    this output: hidden states, which the trajectory holds anyway, are on another scale than logits. tokenwise: each
    token's distribution is a function of its last hidden state alone, so that some can be computed at a time.
    """

    name: str
    kind: OutputKind
    over: Literal["classes", "tokens", "each-token", "entries"] = "classes"
    axis: int = -1
    weight: float = Field(default=1.0, gt=0)
    tokenwise: bool = False
    kind_by_problem_type: dict[str, OutputKind] = {}


class ClassRule(_Strict):
    """What a single model class is for and puts out, where an auto class has classes that differ in that."""

    pipeline: str | None = None
    purpose: Purpose
    outputs: list[OutputRule] = Field(min_length=1)


class HeadRule(_Strict):
    """A kind of model head, by what loads it (an auto class of transformers), what it is for and what it puts out.

    pipeline: the task that hubs file such models under. purpose: the kind of task that fits such a model, which its
    problem type may change. classes: the only model classes that have this head, by name, where not all of the auto
    class's do; `for_class` has what is said of one. choices: whether the model takes several texts a sample, (rows,
    choices, tokens), each of which gets a number.
    """

    library: LibraryName = "transformers"
    pipeline: str | None = None
    purpose: Purpose
    purpose_by_problem_type: dict[str, Purpose] = {}
    outputs: list[OutputRule] = Field(min_length=1)
    classes: dict[str, ClassRule] = {}
    choices: bool = False
    may_miss: list[str] = []
    """First path components of weights that no output depends on and that checkpoints often lack."""

    def for_class(self, name: str) -> HeadRule:
        """The rule for one model class."""
        own = self.classes.get(name)
        update = {} if own is None else {field: getattr(own, field) for field in type(own).model_fields}
        return self.model_copy(update=update)

    def purpose_for(self, problem_type: str | None) -> Purpose:
        """What a model with this head is for, given its config's `problem_type`."""
        return self.purpose_by_problem_type.get(problem_type or "", self.purpose)
