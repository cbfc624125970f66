"""MAML's meta-gradient by PyTorch's automatic differentiation, the plain way: the yardstick of the parity
tests.

Run as a command (`python tests/reference_torch.py`, with PyTorch installed) it writes
tests/golden/meta_gradients.npz anew.
"""

import os

import numpy as np

N_WAY, K_SHOT, K_QUERY, TASKS, INNER_LR = 5, 1, 3, 3, 0.1
CASES = [(order, steps) for order in (1, 2) for steps in (1, 2, 5)]
GOLDEN_WIDTH = 8
GOLDEN_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "meta_gradients.npz")


def make_parameters(width, seed=11, in_channels=1, features=None):
    """18 float64 arrays in the order of MAML.parameters(), with scales of both signs and biases that are not
    zero. `features`, by default the width, are what the linear layer gets."""
    random = np.random.RandomState(seed)
    params = []
    for channels in (in_channels, width, width, width):
        params.append(random.standard_normal((width, channels, 3, 3)) * np.sqrt(2 / (9 * channels)))
        params.append(random.standard_normal(width) * 0.1)
        params.append(1 + random.standard_normal(width) * 0.7)
        params.append(random.standard_normal(width) * 0.3)
    return params + [
        random.standard_normal((features or width, N_WAY)) * 0.3,
        random.standard_normal(N_WAY) * 0.1,
    ]


def make_episodes(seed=5):
    """Strokes on a flat background, so that most pooling windows are ties: x (T, N, 1, 28, 28), y (T, N),
    support then query."""
    random = np.random.RandomState(seed)
    arrays = []
    for shots in (K_SHOT, K_QUERY):
        images = np.ones((TASKS, N_WAY * shots, 1, 28, 28))
        for image in images.reshape(-1, 28, 28):
            for _ in range(3):
                row, column, length = random.randint(2, 20, 3)
                if random.randint(2):
                    image[row : row + 2, column : column + length] = -1
                else:
                    image[row : row + length, column : column + 2] = -random.random_sample()
        arrays += [images, np.tile(np.repeat(np.arange(N_WAY), shots), (TASKS, 1))]
    return arrays


def logits(x, params, architecture="pool"):
    import torch.nn.functional as F

    for block in range(4):
        weight, bias, scale, shift = params[4 * block : 4 * block + 4]
        x = F.conv2d(x, weight, bias, stride=2 if architecture == "stride" else 1, padding=1)
        x = F.relu(F.batch_norm(x, None, None, scale, shift, training=True))
        x = F.max_pool2d(x, 2) if architecture == "pool" else x
    x = x.mean((2, 3)) if architecture == "stride" else x.flatten(1)
    return x @ params[-2] + params[-1]


def meta_gradient(params, episodes, order, steps, inner_lr=INNER_LR, architecture="pool", fixed=0):
    """The mean query loss over the tasks and its gradient by every parameter, float64 arrays. The inner steps
    leave the first `fixed` parameters as they are."""
    import torch
    import torch.nn.functional as F

    params = [torch.tensor(p, requires_grad=True) for p in params]
    losses = []
    for task in range(len(episodes[0])):
        x_spt, y_spt, x_qry, y_qry = (torch.tensor(array[task]) for array in episodes)
        fast = params
        for _ in range(steps):
            loss = F.cross_entropy(logits(x_spt, fast, architecture), y_spt)
            gradients = torch.autograd.grad(loss, fast[fixed:], create_graph=order == 2)
            fast = fast[:fixed] + [p - inner_lr * g for p, g in zip(fast[fixed:], gradients)]
        losses.append(F.cross_entropy(logits(x_qry, fast, architecture), y_qry))
    mean = sum(losses) / len(losses)
    return mean.item(), [g.numpy() for g in torch.autograd.grad(mean, params)]


def main():
    params, episodes = make_parameters(GOLDEN_WIDTH), make_episodes()
    golden = {}
    for order, steps in CASES:
        loss, gradients = meta_gradient(params, episodes, order, steps)
        golden[f"order{order}_steps{steps}_loss"] = loss
        golden.update({f"order{order}_steps{steps}_{i:02d}": g for i, g in enumerate(gradients)})
    os.makedirs(os.path.dirname(GOLDEN_FILE), exist_ok=True)
    np.savez_compressed(GOLDEN_FILE, **golden)


if __name__ == "__main__":
    main()
