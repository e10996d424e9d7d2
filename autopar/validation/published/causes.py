"""Why sources miss: what their rows do not say, with the figures that show it."""

CAUSES = {
    "vts": "looks like replayed kernel profiles: linear in the microbatches to 3e-6, a frozen "
    "error of about 10 % per shape; a shape seen at another depth or count is predicted to 1-2 "
    "%. Never seen, its small steps rest on the default of the fixed time per step, and on that "
    "of the launch time, whose prior is narrow: left wide, other frameworks' slow hosts doubled "
    "its price",
    "vtm": "two models only, one must predict the other; 11 of 73 rows are 19 to 52 % slow for no "
    "modelled reason and alone put 4.6 points on the mean. No stated variable tells them apart: "
    "of the 39 B model's runs all with tp 2 are slow and none with tp 1 or 8; with tp 4 it is "
    "microbatches of 3 to 6 at pp 4, of 2 to 4 at pp 8, of 6 and 12 at pp 16. Neither the host "
    "(the 3.6 B model takes 13.0 ms a layer and microbatch of 2 with tp 4, 9.3 with tp 8), nor "
    "memory, messages or exchange (tp 1 at pp 16 holds and sends as much) explains it",
    "ddl": "neither device nor sequence length is stated; the 100 GbE parameter-server rows of "
    "BERT-Large equal those on 10 GbE",
    "mbr": "recompute and CUDA graphs are not in the table; one group per model and device; a "
    "release alone moves a mixture of experts by a quarter and a dense model by a twentieth "
    "(Qwen3 30B on B300: 8.9 s in 26.02, 6.4 in 26.06; Qwen3 235B on GB300 19.9 to 14.5; Llama "
    "3.1 405B on GB200 62.0 to 58.3). Qwen3 235B takes 16.3 ms a layer and microbatch of 1 on "
    "B300, 17.9 and 14.2 of 2 in the next releases, 5.9 of 1 on GB200 in 26.08: "
    "Megatron-Bridge's recipes capture attention and router as CUDA graphs on GB200 and GB300 "
    "and nothing on B200 and B300. Launches that graphs halve or quarter on superchips, casts "
    "launched per expert and products priced expert by expert were tried: none moves the mean by "
    "more than 0.4 points, or it gets worse. The Nemotron hybrids are stand-ins and recompute "
    "parts of their layers, device by device",
    "amp": "two groups, T4 and mixed, one must predict the other's network (50 and 10 Gb/s); "
    "which device a stage of the mixed cluster runs on is not in the table. Its pipelines with "
    "tp lose 60 to 120 ms a microbatch at sizes 1 and 2, nothing at 4 and more, and nothing "
    "without tp or on the T4 cluster (tp 2, pp 8: 3.36 s with 16 microbatches, 1.79 with 8): a "
    "delay per small message, not a rate",
    "bert": "sequences of 512 are binned by length: half of them is taken as padding from the "
    "corpus, not from the run; pretraining on A100 is predicted from V100, too slow by up to a "
    "fifth",
    "tt": "microbatch and chunks of the 405B runs are not stated; eager and compiled runs and "
    "float8 gathers are one framework here; rows with a scale each are priced by one other run "
    "of the same framework",
    "bs21": "the page itself says results differ by 40 % between allocations; its network counts "
    "with the middle of the 23 to 57 Gb/s measured there",
    "sailor": "mixed consumer cards: rates from memory; precision is not stated, and zero-shot on "
    "GH200 large microbatches take twice the time of 16-bit kernels",
    "sc21t2": "two ZeRO-3 runs of 640 and 2,240 devices, software of 2021, nothing else like "
    "them: their gathers reach about the rate of one of a node's eight network cards",
    "mtnlg": "one run, nothing else calibrates its framework",
    "fms": "two runs, compiled, of a framework that is calibrated by another's",
    "ultra": "two runs; 16 ranks of tensor parallelism over two nodes are in no other source but "
    "vtm",
}
"""Prefix of the row ids -> text for the page."""
