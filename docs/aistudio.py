# %% [markdown]
# # 小样本学习：看一眼就会认字（MAML, few-shot learning）
#
# 每个字只给网络看一个样本（1-shot），它就要从五个字里（5-way）认出新写的同一个字。
# 做法是 MAML（[Finn et al. 2017](https://arxiv.org/abs/1703.03400)）：
# 学一组初始权重，从它出发，几步梯度下降就能学会一个新任务。
#
# 从上到下依次运行即可，不需要 GPU，也不一定需要数据集：没有 Omniglot 时，用程序画出来的字符。
#
# 1. 准备环境：只装缺少的包，不动已装好的 Paddle
# 2. 找数据集
# 3. 看几个任务
# 4. 训练，曲线边训练边画
# 5. 评估自带的权重
# 6. 认自己写的字
# 7. 这些数字是什么意思

# %% tags="parameters"
# 参数（parameters），都可以改。
DATA = "auto"  # "auto"：先找 Omniglot，没有就用画出来的字符；"synthetic"：只用画出来的
DATA_DIR = None  # Omniglot 所在的文件夹或 zip；None：自动查找
OUTPUT = None  # 结果放在哪里；None：AI Studio 的 work 目录，别处则是项目里的 runs
TRAIN = ["--preset", "quickstart"]  # train.py 的选项
EPISODES = 200  # 评估时的任务数

# %% [markdown]
# ## 1 准备环境
#
# 先找到项目文件夹（`train.py` 所在的文件夹），再检查 Paddle、NumPy 和 Pillow。
# 已经装了的一个也不动：只要有任何一种 Paddle，就不安装、不升级、不替换它。
# 本库不用安装，直接从项目文件夹导入，所以重启环境后也不用重装。

# %%
import re
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

AISTUDIO = Path("/home/aistudio")
places = [Path.cwd(), *Path.cwd().parents, *AISTUDIO.glob("*"), *AISTUDIO.glob("work/*")]
ROOT = next((place for place in places if (place / "paddle_maml" / "__init__.py").is_file()), None)
assert ROOT, "找不到 paddle_maml：请把整个项目上传到 /home/aistudio/work 并解压，再运行这一格。"


def packages():
    """已装的包：名字和版本。"""
    found = {}
    for one in metadata.distributions():
        name = (one.metadata["Name"] or "").lower().replace("_", "-")
        found.setdefault(name, one.version)  # Python 用的是最先找到的
    return found


def missing(installed):
    """要交给 pip install 的参数；什么都不缺时是空的。"""
    paddle = next((name for name in installed if name.startswith("paddlepaddle")), None)
    has_paddle = paddle or util.find_spec("paddle")
    numpy = "numpy<2" if paddle and installed[paddle].startswith("2.") else "numpy"  # Paddle 2 用不了 NumPy 2
    wanted = [one for one in (numpy, "pillow") if one.split("<")[0] not in installed]
    if has_paddle:
        return ["--no-deps", *wanted] if wanted else []  # --no-deps：不会顺带换掉 Paddle
    return [*wanted, "paddlepaddle>=3.0"]


installed = packages()
for name in sorted(name for name in installed if name.startswith("paddlepaddle")):
    print(f"已装 {name} {installed[name]}，保持不变。")
    if [int(part) for part in re.findall(r"\d+", installed[name])[:2]] < [2, 6]:
        print("注意：这个版本比较旧，本库只在 2.6.2 和 3.3.1 上测试过。建议新建一个 Paddle 版本更新的项目。")
if missing(installed):
    subprocess.run([sys.executable, "-m", "pip", "install", *missing(installed)], check=True)
print(f"项目文件夹：{ROOT}")

# %% [markdown]
# 结果放在 `OUTPUT`。AI Studio 重启环境时，`/home/aistudio/data` 会还原，
# `/home/aistudio/work` 里的文件会保留，所以结果放在 `work` 里。

# %%
import ctypes
import json
import os
import shlex
import signal

sys.path.insert(0, str(ROOT))
import numpy as np
from PIL import Image, ImageDraw

import paddle_maml
from paddle_maml import EpisodeBuilder, UserError
from paddle_maml.data.omniglot import load_omniglot
from paddle_maml.engine.assembly import load_images
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.inference.images import images_of
from paddle_maml.report.log import read_metrics
from paddle_maml.report.pictures import draw_curve, draw_episode_table, draw_sheet, png

try:
    import IPython
    from IPython.display import Image as Shown
    from IPython.display import clear_output, display

    IN_NOTEBOOK = IPython.get_ipython() is not None
except ImportError:
    IN_NOTEBOOK = False

OUTPUT = Path(OUTPUT or (AISTUDIO / "work" if (AISTUDIO / "work").is_dir() else ROOT) / "runs")
OUTPUT.mkdir(parents=True, exist_ok=True)


def show(picture, name, instead=False):
    """把图片存成 OUTPUT 里的 PNG；在 Notebook 里也显示出来，instead：代替上一张。"""
    (OUTPUT / name).write_bytes(png(picture))
    if IN_NOTEBOOK and instead:
        clear_output(wait=True)
    if IN_NOTEBOOK:
        display(Shown(data=png(picture)))
    else:
        print(f"图片：{OUTPUT / name}")


def ends_with_me():
    """重启内核时，训练也结束，不会在后台一直占着 CPU；之后从最近的检查点继续。"""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1：PR_SET_PDEATHSIG


def run(script, options, meanwhile=lambda: None):
    """运行 train.py 或 eval.py，其间每两秒调用一次 meanwhile；最后显示它的输出。"""
    log = OUTPUT / f"{script}.log"
    command = [sys.executable, str(ROOT / script), *options]
    print("python", script, shlex.join(options))
    with open(log, "wb") as file:
        # 自己的会话：点“中断”时由下面转告，只说一次。
        process = subprocess.Popen(
            command,
            cwd=OUTPUT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
            preexec_fn=ends_with_me if sys.platform == "linux" else None,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=2)
                except subprocess.TimeoutExpired:
                    meanwhile()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
    meanwhile()
    print(log.read_text(encoding="utf-8"))
    assert process.returncode in (0, 130), "没有成功，原因在上面。"  # 130：被中断，进度已保存


print(f"结果放在：{OUTPUT}")

# %% [markdown]
# ## 2 找数据集
#
# Omniglot 有 1,623 个手写字符，来自 50 种文字，每个字符由 20 个人各写一遍。
#
# 在 AI Studio 里给项目添加一个 Omniglot 数据集，它会出现在 `/home/aistudio/data/dataNNNN/`，
# NNNN 是数据集的编号。
# 里面应该是 `images_background.zip` 和 `images_evaluation.zip`，或者一个包含这些图片的 zip。
# 不用解压：下面会自己找到，并检查内容是不是真正的 Omniglot。
# 放在别处时，写在上面的 `DATA_DIR` 里。

# %%
dataset = "synthetic"
if DATA == "auto":
    try:
        print(f"找到了 Omniglot：{len(load_omniglot(DATA_DIR, download=False).classes)} 个字符。")
        dataset = "omniglot"
    except UserError as error:
        print(f"没有可用的 Omniglot，用画出来的字符。原因：{error}")
of_data = ["--dataset", dataset]
if dataset == "omniglot" and DATA_DIR:
    of_data += ["--data-dir", str(DATA_DIR)]

chosen = {"dataset": dataset, "data_dir": DATA_DIR if dataset == "omniglot" else None}
parts, rule = load_images(settings_from_preset("quickstart", **chosen))
for part, images in parts.items():
    print(f"{part}：{len(images.classes)} 个字符，例如 {images.classes[0]}")

# %% [markdown]
# 训练（train）、验证（val）和测试（test）用的是互不相同的字符：测试时的字，网络从来没有见过。
#
# ## 3 看几个任务
#
# 一个任务（episode）是 5 个字符：左边是支持集（support set），每个字符给一个样本；
# 右边是查询集（query set），要认的就是它们。一行是一个字符。

# %%
episodes = EpisodeBuilder(parts["test"], n_way=5, k_shot=1, k_query=10, seed=0)
for number in range(2):
    x_spt, y_spt, x_qry, y_qry = episodes[number]
    print(f"任务 {number}：支持集 {x_spt.shape}，查询集 {x_qry.shape}")
    show(draw_episode_table(x_spt, y_spt, x_qry, y_qry), f"episode-{number}.png")

# %% [markdown]
# ## 4 训练
#
# `quickstart` 是一个小设置：窄的网络，300 次元迭代（meta-iteration），每次 8 个任务。
# 用画出来的字符，在两核的 Intel Xeon 上要两到三分钟。左图是损失，右图是正确率。
#
# 点“中断”会先保存再停下；再运行这一格就从停下的地方继续。想从头再来，先删掉 `OUTPUT` 里的这个文件夹。
#
# 想用 VisualDL 看，在 `TRAIN` 里加上 `"--visualdl"`，日志在这个文件夹的 `visualdl` 里。

# %%
run_folder = OUTPUT / f"notebook-{dataset}"


def curve():
    rows = read_metrics(str(run_folder / "metrics.csv"))
    if rows:
        show(draw_curve(rows), "curve.png", instead=True)
        print(*(OUTPUT / "train.py.log").read_text(encoding="utf-8").splitlines()[-1:])


resume = ["--resume"] if (run_folder / "metrics.csv").exists() else []
run("train.py", [*TRAIN, *of_data, "--log-every", "5", "--output", str(run_folder), *resume], curve)

# %%
if (run_folder / "report.json").exists():
    test = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))["test"]
    print(
        f"测试正确率 {test['accuracy']:.2%} ± {test['interval']:.2%}，{test['episodes']} 个任务；瞎猜是 20%。"
    )
else:
    print("训练还没有完成：再运行上一格。")

# %% [markdown]
# ## 5 评估自带的权重
#
# 本库带着在 Omniglot 上训练好的权重：`5way-1shot`、`5way-5shot`、`20way-1shot`、`20way-5shot`。
# 有 Omniglot 时，下面在它的测试字符上评估；没有时，在画出来的字符上，权重从来没有见过那样的字符。
# 输出里一行是一步内循环（inner step）之后的正确率：第 0 步还没有适应任务，接近瞎猜。

# %%
run("eval.py", ["--pretrained", "5way-1shot", *of_data, "--episodes", str(EPISODES)])

# %% [markdown]
# 同样的权重，在上面的第一个任务上：答对的是绿框，答错的是红框。

# %%
classifier = paddle_maml.load("5way-1shot")
x_spt, y_spt, x_qry, y_qry = episodes[0]
prediction = classifier.adapt(x_spt, y_spt).predict(x_qry)
predicted = np.array(prediction.labels)
print(f"{len(y_qry)} 张里答对 {(predicted == y_qry).sum()} 张。")
show(draw_episode_table(x_spt, y_spt, x_qry, y_qry, predicted), "answers.png")

# %% [markdown]
# ## 6 认自己写的字
#
# 在 `characters/support` 里给每个字建一个文件夹，文件夹的名字就是答案，里面放一张或几张图片；
# 要认的图片放进 `characters/query`。两到五个字，图片大小不限，白底黑字或黑底白字都可以；
# 字要占满画面的大部分，程序不会在一页纸上找字。
#
# 还没有自己的图片时，下面先画三个例子。换成自己的图片：删掉 `characters` 里的例子，放好图片，再运行这两格。

# %%
characters = OUTPUT / "characters"
EXAMPLES = {
    "cross": [(20, 20), (85, 85), (52, 52), (85, 20), (20, 85)],
    "stairs": [(20, 20), (20, 50), (50, 50), (50, 85), (85, 85)],
    "gate": [(20, 85), (20, 25), (85, 25), (85, 85)],
}


def example(points, dx, dy):
    """一笔画成的字，白底黑字。"""
    image = Image.new("L", (105, 105), 255)
    ImageDraw.Draw(image).line([(x + dx, y + dy) for x, y in points], fill=0, width=4)
    return image


if not characters.exists():
    (characters / "query").mkdir(parents=True)
    for label, points in EXAMPLES.items():
        (characters / "support" / label).mkdir(parents=True)
        example(points, 0, 0).save(characters / "support" / label / "1.png")
        example(points, 6, -4).save(characters / "query" / f"{label}.png")

# %%
task = classifier.adapt(characters / "support")  # 学习：每个字一张图片就够
prediction = task.predict(characters / "query")  # 回答
print(prediction)


def small(path):
    return np.asarray(Image.open(path).convert("L").resize((64, 64)))


# 图片里只能写拉丁字母，所以中文的名字用编号代替。
names = {label: label if label.isascii() else f"class {number}" for number, label in enumerate(task.classes)}
for label, name in names.items():
    if name != label:
        print(f"{name}：{label}")
lines = [
    ("support", [(small(one.name), names[one.label]) for one in images_of(characters / "support")]),
    ("query: answers", [(small(at), names[label]) for at, label in zip(prediction.names, prediction.labels)]),
]
show(draw_sheet(lines, zoom=1), "my-characters.png")

# %% [markdown]
# ## 7 这些数字是什么意思
#
# - **正确率 ± 区间**：许多测试任务的平均正确率，和 95 % 置信区间（标准误的 1.96 倍）。
#   任务越多，区间越窄；两个结果的区间相互重叠时，不要急着说哪个更好。
# - **transductive（直推）**：批归一化（batch norm）用整个查询集的统计量，
#   所以对一张图片的回答，取决于同时问了哪些图片。
#   Finn et al. 的代码和 2021 年的飞桨复现都是这样测的，下面第一行也是。
# - **只用支持集的统计量**（`--statistics support`）：一张一张地问，或一起问，回答都一样。
#   上面认自己的字，用的就是这一种；数字低一些，更接近实际使用。
# - 没有 Omniglot 时，上面的数字是在画出来的字符上测的，不能和论文比较。

# %%
card = classifier.card
for name, result in (("query", card["test"]), ("support", card["test_support_statistics"])):
    accuracy, interval, number = result["accuracy"], result["interval"], result["episodes"]
    print(f"Omniglot, statistics of the {name} set: {accuracy:.2%} ± {interval:.2%} ({number} episodes)")

# %% [markdown]
# ## 接下来
#
# - 真正的训练：把 `TRAIN` 改成 `["--preset", "omniglot-5way-1shot"]`；所有选项：`python train.py --help`。
# - 用自己的一整个图片集训练：`docs/own-images.md`。
# - 导出成不需要本库的模型：`docs/use.md`。
# - 常见问题：`docs/aistudio.md`。
