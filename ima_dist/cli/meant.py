"""The option that was meant: other tools call ours by other names."""

from collections.abc import Iterable

from ima_dist.config.errors import did_you_mean

# What is typed, without dashes, dots and underscores -> the option, as it would have to be typed.
_SYNONYMS = {
    **dict.fromkeys(("learningrate", "initlr", "lrinit"), "--optimizer.lr"),
    **dict.fromkeys(("optim", "opt", "optimizer", "optimiser"), "--optimizer.name"),
    **dict.fromkeys(("wd", "decay", "l2reg"), "--optimizer.weight-decay"),
    **dict.fromkeys(("lrdecay", "lrschedule", "scheduler", "stepsize"), "--optimizer.halve-every"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "usecuda", "usegpu"), "--device cuda"),
    **dict.fromkeys(("cpu", "nocuda", "nogpu"), "--device cpu"),
    **dict.fromkeys(("eps", "epsilon", "maxeps", "radius", "dmax", "perturbation"), "--eps-max"),
    **dict.fromkeys(("stepeps", "expansion"), "--delta-eps"),
    **dict.fromkeys(("bs", "batch", "trainbatchsize"), "--batch-size"),
    **dict.fromkeys(("epoch", "nepochs", "numepochs", "maxepochs"), "--epochs"),
    **dict.fromkeys(("pgdsteps", "attackiters", "iters", "iterations", "nsteps", "numsteps"), "--attack.steps"),
    **dict.fromkeys(("alpha", "stepscale"), "--attack.step-scale"),
    **dict.fromkeys(("evaleps", "noiselevels", "levels", "testeps"), "--eval.noise"),
    **dict.fromkeys(("attack", "evalattack", "attacks"), "--eval.attacks"),
    **dict.fromkeys(("nsamples", "numsamples", "testsamples", "nex", "evalsize"), "--eval.samples"),
    **dict.fromkeys(("datapath", "dataroot", "root", "data", "dataset"), "--data.dir"),
    **dict.fromkeys(("limit", "trainsamples", "trainsubset"), "--data.subset"),
    **dict.fromkeys(("arch", "network", "net", "model", "modelname"), "--model.factory"),
    **dict.fromkeys(("numworkers", "nworkers", "nproc", "nprocpernode", "worldsize", "ranks"), "--workers"),
    **dict.fromkeys(("threads", "numthreads", "cpus"), "--cpus-per-worker"),
    **dict.fromkeys(("amp", "fp16", "half", "mixedprecision", "precision"), "--autocast float16"),
    **dict.fromkeys(("bf16", "bfloat16"), "--autocast bfloat16"),
    **dict.fromkeys(("torchcompile", "compiled", "jit", "inductor"), "--compile"),
    **dict.fromkeys(("cudagraph", "graphs"), "--cuda-graphs"),
    **dict.fromkeys(("double", "fp64", "float64"), "--dtype float64"),
    **dict.fromkeys(("output", "outputdir", "outdir", "savedir", "logdir", "dir", "save"), "--out"),
    **dict.fromkeys(("continue", "restart", "checkpoint", "ckpt", "loadcheckpoint", "resumefrom"), "--resume"),
    **dict.fromkeys(("randomseed", "rngseed", "manualseed"), "--seed"),
    **dict.fromkeys(("algorithm", "trainer", "loss", "mode"), "--method"),
    **dict.fromkeys(("lambda", "tradesbeta", "invlambda"), "--trades.inverse-lambda"),
    **dict.fromkeys(("linf", "l2", "lp", "threatmodel", "ord", "p"), "--norm"),
    **dict.fromkeys(("printconfig", "dryrun", "config", "cfg", "verbose", "settings"), "--show-config"),
}


def meant(word: str, options: Iterable[str]) -> str:
    """A hint such as `` (did you mean --optimizer.lr?)`` for an unknown option ``word``; "" if there is none.

    ``options``: those of the command.

    In this order: the same name in a section, the same name by another convention, a synonym, a similar spelling.
    """
    known = [
        option for option in options if option.startswith("--") and (not option.startswith("--no-") or "no-" in word)
    ]
    plain = _plain(word)
    found = [option for option in known if plain in (_plain(option), _plain(option.rpartition(".")[2]))]
    synonym = _SYNONYMS.get(plain, "")
    if not found and synonym.split(" ")[0] in known:
        found = [synonym]
    if not found and word.startswith("-"):
        return did_you_mean(word, known)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "").replace(".", "")
