"""How fast a meta-iteration is, and how fast it is elsewhere: `python -m paddle_maml.benchmark`.

Every contestant gets the same network, initial weights and episodes and runs in processes of its own, because
two frameworks in one process, or two pools of threads, slow each other down. The final measures them in
turns, A B C A B C, so that a machine that slows down or is busy for a while slows all of them.

    contestants.py      who runs, in which arrangement of the cores, on which problem
    worker.py           a contestant's process: one meta-iteration on command
    paddle_sides.py     this library, and the competition's loop
    pytorch_sides.py    PyTorch's variants
    torch_libraries.py  learn2learn, higher, TorchOpt
    jax_side.py         JAX
    paddlefsl_side.py   PaddleFSL
    measure.py          the turns, medians, ratios
    scaling.py          this library's time and memory against the size of the problem, and their picture
"""
