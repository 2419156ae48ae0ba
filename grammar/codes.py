"""The table of all diagnostic codes: what each means, for the documents and `explain`."""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """A code's title, and what causes it and what to do."""

    title: str
    explanation: str


CODES: dict[str, Code] = {
    # SH01xx: syntax
    "SH0101": Code(
        "unexpected text",
        "The parser met a word or sign that cannot stand there. The message lists what can.",
    ),
    "SH0102": Code(
        "meaningless character",
        "The language has no use for the character outside of strings and comments.",
    ),
    "SH0103": Code(
        "malformed or too large number",
        "Integers and byte sizes stay below 2**63 and floats are finite. Sizes are written with"
        " KiB, MiB, GiB or TiB. A number may not run into a name.",
    ),
    "SH0104": Code(
        "string never closed",
        "A string ends on the line that it begins on.",
    ),
    "SH0105": Code(
        "bracket never closed",
        "The next statement, or the end of the file, comes before the closing bracket.",
    ),
    "SH0106": Code(
        "unknown statement",
        "No statement begins with this word.",
    ),
    "SH0107": Code(
        "reserved word",
        "`over` and `as` are never names, since they may follow the size of an axis. All other"
        " words of the language are legal names.",
    ),
    "SH0108": Code(
        "no such stage",
        "The code of a stage is asked for that the spec does not have, or of none, and each stage"
        " of a pipeline has its own.",
    ),
    "SH0109": Code(
        "file that cannot be read",
        "A spec, or a file named by `use` or `schedule`, does not exist, is not UTF-8 text or may"
        " not be read. Specs are regular files of at most 1 MiB, and the name of a used one ends in"
        " `.shard`."
        " Paths are relative to the file that writes them.",
    ),
    "SH0110": Code(
        "malformed pattern",
        "Patterns have `*`, `**`, `{a,b}` and inclusive ranges `{0..7}`; a backslash takes the"
        " next character as it is. Braces must pair.",
    ),
    "SH0111": Code(
        "bracket that closes nothing",
        "A closing bracket has no opening one.",
    ),
    # SH02xx: names, mesh and layouts
    "SH0201": Code(
        "no mesh",
        "A spec declares the axes of its devices in a `mesh` block, at least one.",
    ),
    "SH0202": Code(
        "name declared twice",
        "Axes, dims and lets share one namespace within a file and all that it uses. A file may"
        " declare a let, a dim or the mesh of a used file anew, but not as something else.",
    ),
    "SH0203": Code(
        "axis shards two dims",
        "An axis may shard at most one dim of a tensor: a device has one index along it.",
    ),
    "SH0204": Code(
        "axis twice in one product",
        "Each axis stands once in a product. A dim's name stands for its axes.",
    ),
    "SH0205": Code(
        "unknown axis or dim",
        "The name is declared in no `mesh` and no `dims` block above.",
    ),
    "SH0206": Code(
        "name of the wrong kind",
        "A let stands for a literal; axes and dims stand in layouts. Neither can take the other's"
        " place.",
    ),
    "SH0207": Code("bad axis size", "The size of an axis is an integer of at least 1."),
    "SH0208": Code(
        "axis summed over twice, or sharded and summed over",
        "Along one axis a tensor is sharded, or a partial sum, or neither.",
    ),
    "SH0209": Code(
        "`...` twice in one layout",
        "`...` stands for all remaining dims, so it stands once.",
    ),
    "SH0210": Code("bad block", "A number of blocks, or a block's ratio, is at least 1."),
    "SH0211": Code(
        "unknown name for a value",
        "Where a literal stands, a declared let, `true` or `false` may stand as well.",
    ),
    "SH0212": Code("not an integer", "A size must be a whole number."),
    "SH0213": Code(
        "unknown element type",
        "The element types are i64, i32, i16, i8, u8, f64, f32, f16, bf16 and bool.",
    ),
    "SH0214": Code("no model", "A spec names the model that it shards."),
    "SH0215": Code(
        "malformed model",
        'A model is `hf("config.json", ...)` or `"file.py:function"(...)`.',
    ),
    "SH0216": Code(
        "misplaced argument",
        "An argument is given twice, or has no name where it needs one.",
    ),
    "SH0217": Code("file that uses itself", "`use` statements may not form a circle."),
    "SH0218": Code(
        "`--set` of an undeclared name",
        "`--set` changes the value of a declared let only.",
    ),
    "SH0219": Code(
        "`--set` of another type",
        "The new value must have the type of the declared one; a float may be given as an integer.",
    ),
    "SH0220": Code(
        "unknown optimizer",
        "An optimizer is one of `torch.optim`, by its name in lower case.",
    ),
    "SH0221": Code(
        "bad optimizer argument",
        "The arguments are those of the optimizer's class, and `clip`. It has no such argument, or"
        " the argument cannot have that value.",
    ),
    "SH0222": Code(
        "bad bound",
        "`below` bounds the integers of an input: it is at least 1, and floats have none.",
    ),
    "SH0223": Code(
        "overridden statement",
        "Later statements win, so that a general one can be followed by exceptions. The note"
        " shows where that happens.",
    ),
    "SH0224": Code("unknown mode", "A model runs in mode `train` or `eval`."),
    "SH0225": Code("too many devices", "A mesh has at most 1,048,576 devices and 64 axes."),
    "SH0226": Code("bad dim", "Every dim of an input, and every size of a shard, is at least 1."),
    "SH0227": Code(
        "bad bound of an expectation",
        "A count is compared with an integer, bytes with an integer, a size such as `512MiB` or a"
        " multiple of what any program must send (`1.1 * bound`); none is negative.",
    ),
    "SH0228": Code(
        "layout and shape of different rank",
        "The layout of an input has one entry per dim of its stated shape.",
    ),
    "SH0229": Code(
        "gathering again what is kept",
        "`regather` is for parameters that are stored split. `store gradients` and"
        " `store optimizer` keep the parameter itself as it is used.",
    ),
    "SH0242": Code(
        "bad number of microbatches",
        "`accumulate`, or `microbatches` in a pipeline, cuts the first dim of the inputs into that"
        " many parts: at least 1, or 2 in a pipeline, and at most so many that every device has a"
        " row of each.",
    ),
    "SH0243": Code(
        "bad precision",
        "A model computes in bf16 or f16, narrower than its parameters. Master weights, a copy of"
        " narrower parameters that the optimizer updates, are f32, and so are the sums of"
        " gradients of narrower parameters, unless `reduce` states the type of `compute`."
        " `loss_scale` is `dynamic` or a number above 0, for a model that computes in f16; its f16"
        " parameters have master weights.",
    ),
    "SH0244": Code(
        "f16 without a loss scale",
        "Gradients below 6e-8 are zero in f16. `precision { loss_scale = dynamic }` multiplies the"
        " loss, and the optimizer divides the gradients.",
    ),
    "SH0248": Code(
        "bad checkpoint",
        "A checkpoint is written every so many steps, at least 1, and at least one is kept.",
    ),
    "SH0249": Code(
        "bad option of `data`",
        "`data` takes a path, `packed` or `documents`, and the options `validation`, `shuffle`,"
        " `drop_last`, `split`, `ids` and `labels`.",
    ),
    "SH0250": Code(
        "precision that changes nothing",
        "Master weights and wider sums of gradients are for parameters narrower than f32, and the"
        " model has none.",
    ),
    "SH0245": Code(
        "optimizer that needs whole parameters",
        "Every device updates its part of a parameter. That is right where each number is updated"
        " by itself, which adafactor, lbfgs, muon and sparseadam do not do.",
    ),
    "SH0246": Code(
        "bad schedule of the learning rate",
        "A schedule is phases one after the other, each of a number of steps (`warmup`, `constant`,"
        " `linear`, `cosine`), or one scheduler of `torch.optim.lr_scheduler`, by its name in lower"
        " case.",
    ),
    "SH0247": Code(
        "bad evaluation",
        "An evaluation is made every so many steps over so many batches, both at least 1.",
    ),
    "SH0270": Code(
        "bad peak of a device",
        "`cluster` states how many floating-point operations a device makes in a second at best, a"
        " number above 0 for each of the types `f64`, `f32`, `f16` and `bf16`.",
    ),
    "SH0230": Code("unused name", "A let or dim that nothing refers to."),
    "SH0231": Code(
        "unused axis",
        "No layout and no storage names the axis, so all devices along it do the same work.",
    ),
    "SH0232": Code(
        "partial sum where none can be",
        "Parameters, buffers, inputs and outputs are never partial sums; values inside the model"
        " may be.",
    ),
    "SH0233": Code("let that stands for itself", "Lets may name lets, but not in a circle."),
    "SH0234": Code(
        "unknown link",
        "`over` names the link of an axis, whose bandwidth `plan` estimates with: nvlink, pcie, ib,"
        " roce or ethernet.",
    ),
    "SH0235": Code(
        "axis without such a part",
        "`tp:4` is the major part of an axis, `tp/4` what is left behind it. The numbers of shards"
        " at which parts of one axis begin and end divide its size and one another.",
    ),
    "SH0236": Code(
        "bad budget",
        "The bytes that a step may take, as in `recompute to 12GiB`, are at least 1.",
    ),
    "SH0238": Code(
        "bad number of bytes",
        "What `prefetch` may hold is at least 0 bytes; with 0, every gather is made at its use.",
    ),
    "SH0260": Code(
        "bad schedule of a pipeline",
        "The schedules are gpipe, 1f1b, interleaved_1f1b, zb_h1, zbv, v_half and dualpipe_v."
        " `virtual`, the stages of each device, is an integer of at least 2 and stands with"
        " interleaved_1f1b alone. Some schedules need so many microbatches for each device, or a"
        " multiple of a number. A file has a row of actions for each device, as torch writes it,"
        " in an order in which no devices wait for each other in a circle.",
    ),
    "SH0261": Code(
        "bad pipeline",
        "A pipeline states its stages by `split` and the parts of a batch by `microbatches`, which"
        " takes the place of `accumulate`. Each stands in it once. Its axis is no data axis.",
    ),
    "SH0262": Code(
        "axis of a pipeline that splits a tensor",
        "The devices along the axis of a pipeline hold different stages, so no layout, no storage"
        " and no dim may name it.",
    ),
    # SH03xx: binding to the model
    "SH0301": Code(
        "pattern that matches nothing",
        "No parameter, buffer or module of the model has such a name. The nearest are named.",
    ),
    "SH0302": Code(
        "layout of another rank",
        "The layout must have one entry per dim of every tensor that the pattern matches.",
    ),
    "SH0303": Code(
        "more shards than elements",
        "Some devices would hold nothing of the tensor.",
    ),
    "SH0304": Code(
        "blocks that do not divide",
        "The size of a packed dim is a multiple of the number of its blocks, or of the sum of"
        " their ratios.",
    ),
    "SH0305": Code(
        "several tensors to choose from",
        "The module reads or returns several tensors, so the statement must choose one.",
    ),
    "SH0306": Code(
        "no such tensor",
        "The module does not read or return a tensor by that name or index.",
    ),
    "SH0307": Code(
        "unknown input",
        "The traced model reads no input by that name. (A spec whose own model is traced finds"
        " this earlier, as SH0353.)",
    ),
    "SH0308": Code(
        "input of another shape",
        "The stated shape is not the one that the model was traced with. (A spec whose own model"
        " is traced finds this earlier, as SH0355, if the model fails on that shape.)",
    ),
    "SH0309": Code("sharded scalar", "A scalar has no dim to shard."),
    "SH0310": Code("unknown output", "The model returns no output by that name."),
    "SH0311": Code(
        "loss that is not a scalar",
        "The loss is one output that holds a single number.",
    ),
    "SH0312": Code(
        "numbers too large for an op",
        "An integer input may hold a number, by its `below` or in the model's own batch, that a"
        " table, a loss or an index of the model does not take.",
    ),
    "SH0313": Code(
        "stages that do not fit the model",
        "`split` names lists of modules, such as `model.layers`, with a layer for each stage at"
        " least, or lists as many stages as the schedule has; `split auto` needs as many layers. A"
        " module is in one stage, every stage computes something, and a value goes to later stages"
        " alone.",
    ),
    "SH0314": Code(
        "pipeline that is not trained",
        "A pipeline computes the forward and the backward of a loss, so the model is in mode"
        " `train` and has a loss.",
    ),
    "SH0315": Code(
        "storage that splits nothing",
        "What a `store` names is split over its axes already, or has no dim with an index for every"
        " device, so the statement changes nothing.",
    ),
    "SH0350": Code(
        "unreadable model file or configuration",
        "The file that `model` names does not exist or does not load.",
    ),
    "SH0351": Code(
        "missing or unusable build function",
        "The function that `model` names does not exist, or does not take the given arguments.",
    ),
    "SH0352": Code("model that cannot be built", "The model's own code fails."),
    "SH0353": Code(
        "input that does not match",
        "The model's forward takes no such input, or needs one that is not declared.",
    ),
    "SH0354": Code(
        "branch on tensor data",
        "The model's code decides by the values of a tensor, needs them as numbers, or hands them"
        " to NumPy, which tracing cannot follow.",
    ),
    "SH0355": Code("failure while tracing", "The model fails on the declared inputs."),
    "SH0356": Code(
        "unsupported parameter",
        "A parameter or buffer is sparse, quantized or without a shape, shares memory with another"
        " tensor of the model, or its gradient is sparse or changed by a hook.",
    ),
    "SH0357": Code(
        "in-place update",
        "The model changes a tensor in place that it may not change, or in a way that cannot be"
        " written as a function of its operands.",
    ),
    "SH0358": Code(
        "unsupported construct",
        "The model does something that a traced graph does not hold, such as a backward of its own,"
        " or that cannot be sharded.",
    ),
    "SH0359": Code("checkpoint that does not fit", "The weights have other names or shapes."),
    "SH0360": Code(
        "missing or ambiguous value",
        "A module's tensor does not exist, or there are several.",
    ),
    "SH0361": Code(
        "state that is not traced",
        "The forward changes a Python attribute, or Python draws its random numbers. The traced"
        " program keeps what they were while it was traced.",
    ),
    "SH0362": Code(
        "check that is left out",
        "A check in the model depends on the values of tensors. Tracing takes it to pass, and the"
        " program does not check.",
    ),
    # SH04xx: propagation and resharding
    "SH0401": Code("op without a rule", "No sharding rule says how the op may be split."),
    "SH0402": Code(
        "rule that does not fit",
        "The op's rule does not describe the operands that it is given.",
    ),
    "SH0403": Code(
        "claims that disagree",
        "Two parameters read by one op are stated over different factors on the same axis.",
    ),
    "SH0404": Code(
        "op that cannot be split this way", "The op has no program for the chosen layouts."
    ),
    "SH0405": Code(
        "layouts without a path between them",
        "No sequence of reshards leads from the layout that a value has to the one that is needed.",
    ),
    "SH0406": Code(
        "full gather",
        "No exchange leads from the layout that a value has to the one that is needed, so devices"
        " gather more of it than they hold before or after. `forbid full_gather` in an `expect`"
        " block makes it an error.",
    ),
    "SH0407": Code(
        "experts that are gathered",
        "A note: rows are not sent to experts that are split over axes of the rows and others.",
    ),
    "SH0408": Code(
        "buffer update that needs the whole",
        "The forward computes the new value of a split buffer from all of the old one, so every"
        " device would gather it at every step.",
    ),
    "SH0409": Code(
        "batch that cannot be accumulated",
        "Under `accumulate` or `pipeline` a step computes one microbatch after the other. An op"
        " that needs all of them at once, as the statistics of a batch norm do, stands in the way.",
    ),
    "SH0410": Code(
        "draw that a pipeline cannot follow",
        "Every stage of a pipeline takes the random numbers of all others too, so that each draws"
        " what one device would. How many numbers this op takes depends on values that another"
        " stage has.",
    ),
    # SH05xx: plan and expect
    "SH0501": Code(
        "expectation not met",
        "The number of calls, or of bytes, is not as expected. The notes list the largest, or"
        " those that send most above their bound where that is expected.",
    ),
    "SH0502": Code(
        "forbidden collective", "The plan has a collective or a transfer that `forbid` excludes."
    ),
    "SH0503": Code("layout not met", "The tensor lies otherwise than expected."),
    "SH0504": Code("unknown tensor", "The plan has no tensor by that name."),
    "SH0505": Code(
        "local size not met",
        "The largest shard of the tensor that a device holds has another shape or other bytes.",
    ),
    "SH0506": Code(
        "proof that fails",
        "The sharded program and the model disagree. The first value that differs is named.",
    ),
    "SH0507": Code(
        "proof too large",
        "The proof holds the model and all simulated devices in memory, in float64.",
    ),
    "SH0508": Code(
        "model that cannot be shrunk",
        "A smaller model would be sharded otherwise, or has nothing to cut.",
    ),
    "SH0509": Code(
        "ill-conditioned model",
        "The difference is no larger than what rounding makes: the reference, with every number off"
        " by its rounding, changes as much. A warning, or an error where it could hide a fault.",
    ),
    "SH0510": Code(
        "loss that is not finite",
        "The loss is infinite or undefined in the model and in the program, so nothing is compared"
        " through it.",
    ),
    "SH0511": Code(
        "loss without a gradient",
        "No gradient flows from the loss to any parameter, so that nothing can be trained.",
    ),
    "SH0512": Code(
        "step that does not fit",
        "However much the backward computes again, the step's peak of live bytes is above the"
        " budget of `recompute to`. The message gives the least peak that was found.",
    ),
    "SH0513": Code(
        "loss that is not named",
        "Several outputs are real scalars that carry a gradient, so none is taken for the loss. A"
        " warning: a loop of one's own may start from either.",
    ),
    "SH0514": Code(
        "statement without a loss",
        "The statement speaks of the loss, and no output of the model is known to be it.",
    ),
    # SH06xx: run
    "SH0601": Code(
        "other number of processes",
        "The number of processes must be the number of devices of the mesh.",
    ),
    "SH0602": Code(
        "other programs",
        "The ranks hold different programs, or were given different specs: they would hang, or"
        " train a mixture.",
    ),
    "SH0603": Code(
        "failed rank",
        "A process ended with an error. Where the model's own code raised it, its traceback"
        " follows.",
    ),
    "SH0604": Code("stuck rank", "A rank waits in a collective that others do not reach."),
    "SH0605": Code(
        "data that does not fit",
        "The data has other names, types or shapes, or is not made of the model's tokens.",
    ),
    "SH0606": Code(
        "optimizer that cannot be made",
        "Its name or its arguments are unknown, or no module is loaded that it could train.",
    ),
    "SH0607": Code("device not available", "This machine has no such device, or too few."),
    "SH0608": Code("checkpoint that does not fit", "The weights have other names or shapes."),
    "SH0609": Code(
        "result that cannot be saved",
        "The folder cannot be written, has not the room, or holds another model's weights, which"
        " are left as they are.",
    ),
    "SH0610": Code(
        "nodes that cannot meet",
        "The endpoint is malformed or does not answer, or another command has the number of this"
        " node.",
    ),
    "SH0611": Code(
        "replicas that differ",
        "Devices that hold the same, or shards of the same, have other values.",
    ),
    "SH0612": Code("ranks that call differently", "Every rank gives the same batches and calls."),
    "SH0613": Code("call without a program", "No program can answer a call in this state."),
    "SH0614": Code(
        "number out of range",
        "An integer input holds a number that a table, a loss or an index of the model does not"
        " take.",
    ),
    "SH0620": Code(
        "write that would be lost",
        "A view of a split tensor is a copy, and a write into it does not reach the tensor.",
    ),
    "SH0621": Code(
        "place that cannot be reached",
        "torch was asked to move, cut or share a tensor in a way that it cannot.",
    ),
    "SH0622": Code(
        "shard of another device",
        "A pickled tensor is one device's shard: this process is not that device, or some devices"
        " have saved theirs and others have not.",
    ),
    "SH0623": Code(
        "module that cannot change this way",
        "A sharded module keeps its parameters, and is bound to the running processes.",
    ),
    "SH0630": Code(
        "loss that is not finite",
        "The loss, or the norm of the gradients, became infinite or no number. The step changes no"
        " parameter, and the run ends; with `--save` the weights before it are saved.",
    ),
    "SH0631": Code(
        "nothing to train",
        "The loss needs no gradient, or no parameter does.",
    ),
    "SH0632": Code(
        "run that differs from its reference",
        "A loss of the run lies farther from that of the plain model than rounding carries it.",
    ),
    "SH0641": Code(
        "parameter that changed too soon",
        "The backward reads parameters and buffers again, so they must be as they were.",
    ),
    "SH0642": Code(
        "optimizer that would not do as the spec says",
        "Under `store gradients` or `store optimizer` the states of the optimizer are split, and"
        " the parameters are gathered after its step; `precision` may state master weights and a"
        " scaled loss. The spec's own optimizer does all of this.",
    ),
    "SH0643": Code(
        "loss that is not scaled",
        "Under `loss_scale` the optimizer divides gradients by the factor of the loss, so the loss"
        " must have been multiplied: by `optimizer.scale(loss)`, or in `program.step`.",
    ),
    "SH0644": Code(
        "step that cannot be compiled",
        "Under `--compile`, or `load(compile=True)`, the compiler of the regions fails.",
    ),
    "SH0645": Code(
        "model in stages",
        "Under `pipeline` each device holds the parameters of its own stages and computes these"
        " alone, so the model is trained by whole steps. A parameter that two stages use must lie"
        " alike in both.",
    ),
    "SH0646": Code(
        "learning rate that ends before the run",
        "A scheduler of torch such as `onecyclelr` is made for a number of steps, and the run takes"
        " more.",
    ),
    "SH0651": Code(
        "data that cannot be read",
        "A file of tokens or of a text does not exist, is cut short, has no index, or is not what"
        " its name says; or a package that reads it is not installed.",
    ),
    "SH0652": Code(
        "tokens of another vocabulary",
        "The data was made by another tokenizer than the model's, or holds a token that the model"
        " does not know.",
    ),
    "SH0653": Code(
        "data that changed since the checkpoint",
        "A run goes on where it stood in its data. With other data, cut otherwise or drawn in"
        " another order, samples would be read twice or never.",
    ),
    "SH0661": Code(
        "checkpoint that cannot be read",
        "No checkpoint of the folder is whole: files are missing, cut off or changed, or were never"
        " written to the end.",
    ),
    "SH0662": Code(
        "checkpoint that cannot be written",
        "The folder does not take the files. The checkpoints before are as they were.",
    ),
    "SH0663": Code(
        "checkpoint that cannot be made",
        "The place is unknown, or the state holds what a checkpoint cannot keep.",
    ),
    "SH0664": Code(
        "run without a folder of its own",
        "Checkpoints need a folder, and a run overwrites none: a folder that holds checkpoints is"
        " resumed with `--resume`, and one in which a run is under way is its own.",
    ),
    "SH0665": Code(
        "checkpoint of another run",
        "A run goes on with the model, the optimizer and the precision that it began with. Mesh and"
        " layouts may differ.",
    ),
    "SH0666": Code(
        "too little memory",
        "A step needs more memory than is free on the device, or on the node for all of its"
        " processes.",
    ),
}
"""Every code, by number."""
