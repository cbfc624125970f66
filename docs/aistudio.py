# %% [markdown]
# # 少样本学习（few-shot learning）：用 MAML 看一眼就会认字
#
# 每个字只给网络看一个样例（1-shot），它就要从五个字（5-way）中认出新写的字是哪一个。
# 方法是元学习算法 MAML（[Finn et al. 2017](https://arxiv.org/abs/1703.03400)）：
# 学习一组初始权重，从它出发，只用几步梯度下降就能学会一个新任务。
#
# 从上到下依次运行即可。不需要 GPU，也可以没有数据集：没有 Omniglot 时，使用程序绘制的字符。
#
# 1. 准备环境：只安装缺少的包，不改动已安装的飞桨
# 2. 查找数据集
# 3. 查看几个任务
# 4. 训练，同时绘制曲线
# 5. 评估随库权重
# 6. 识别自己写的字
# 7. 这些数字的含义

# %% tags="parameters"
# 参数（parameters），都可以修改。
DATA = "auto"  # "auto"：优先用 Omniglot，没有就用程序绘制的字符；"synthetic"：只用程序绘制的字符
DATA_DIR = None  # Omniglot 所在的文件夹或 zip；None：自动查找
OUTPUT = None  # 存放结果的文件夹；None：AI Studio 上是 work/runs，别处是项目里的 runs
TRAIN = ["--preset", "quickstart"]  # train.py 的选项
EPISODES = 200  # 评估时的任务数

# %% [markdown]
# ## 1 准备环境
#
# 先找到项目文件夹（`train.py` 所在的文件夹），再检查飞桨、NumPy 和 Pillow。
# 已安装的包都不改动：只要装有任意版本的飞桨，就不会安装、升级或替换它。
# 本库不需要安装，直接从项目文件夹导入，所以重启环境后也不用重装。

# %%
import re
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

AISTUDIO = Path("/home/aistudio")
places = [Path.cwd(), *Path.cwd().parents, *AISTUDIO.glob("*"), *AISTUDIO.glob("work/*")]
ROOT = next((place for place in places if (place / "paddle_maml" / "__init__.py").is_file()), None)
assert ROOT, "找不到 paddle_maml：请把整个项目上传到 /home/aistudio/work 并解压，再运行这个单元格。"


def packages():
    """已安装的包：名字和版本。"""
    found = {}
    for one in metadata.distributions():
        name = (one.metadata["Name"] or "").lower().replace("_", "-")
        found.setdefault(name, one.version)  # Python 使用最先找到的
    return found


def missing(installed):
    """pip install 的参数；什么都不缺时为空。"""
    paddle = next((name for name in installed if name.startswith("paddlepaddle")), None)
    has_paddle = paddle or util.find_spec("paddle")
    numpy = "numpy<2" if paddle and installed[paddle].startswith("2.") else "numpy"  # 飞桨 2 不支持 NumPy 2
    wanted = [one for one in (numpy, "pillow") if one.split("<")[0] not in installed]
    if has_paddle:
        return ["--no-deps", *wanted] if wanted else []  # --no-deps：不会顺带替换飞桨
    return [*wanted, "paddlepaddle>=3.0"]


installed = packages()
for name in sorted(name for name in installed if name.startswith("paddlepaddle")):
    print(f"已安装 {name} {installed[name]}，保持不变。")
    if [int(part) for part in re.findall(r"\d+", installed[name])[:2]] < [2, 6]:
        print("注意：这个版本较旧，本库只在 2.6.2 和 3.3.1 上测试过。建议新建一个飞桨版本更新的项目。")
if missing(installed):
    subprocess.run([sys.executable, "-m", "pip", "install", *missing(installed)], check=True)
print(f"项目文件夹：{ROOT}")

# %% [markdown]
# 结果保存在 `OUTPUT` 里。AI Studio 重启环境时，`/home/aistudio/data` 会还原，
# `/home/aistudio/work` 里的文件会保留，所以默认把结果保存在 `work` 里。

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
    """把图片以 PNG 格式保存到 OUTPUT，在 Notebook 里还会显示；instead：替换上一张。"""
    (OUTPUT / name).write_bytes(png(picture))
    if IN_NOTEBOOK and instead:
        clear_output(wait=True)
    if IN_NOTEBOOK:
        display(Shown(data=png(picture)))
    else:
        print(f"图片：{OUTPUT / name}")


def ends_with_me():
    """重启内核时，训练也结束，不会在后台一直占用 CPU；之后可以从最近的检查点继续。"""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1：PR_SET_PDEATHSIG


def run(script, options, meanwhile=lambda: None):
    """运行 train.py 或 eval.py，期间每两秒调用一次 meanwhile，结束后显示输出。"""
    log = OUTPUT / f"{script}.log"
    command = [sys.executable, str(ROOT / script), *options]
    print("python", script, shlex.join(options))
    with open(log, "wb") as file:
        # 放在独立的会话里：点击“中断”时，由下面的代码转发一次信号。
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
    assert process.returncode in (0, 130), "运行失败，原因见上面的输出。"  # 130：被中断，进度已保存


print(f"结果保存在：{OUTPUT}")

# %% [markdown]
# ## 2 查找数据集
#
# Omniglot 有 1,623 个手写字符，来自 50 种文字，每个字符由 20 个人各写一遍。
#
# 在 AI Studio 上给项目添加一个 Omniglot 数据集，它就会出现在 `/home/aistudio/data/dataNNNN/`，
# NNNN 是数据集的编号。
# 里面应有 `images_background.zip` 和 `images_evaluation.zip`，或者一个包含全部图片的 zip。
# 不用解压：下面的代码会自动找到它，并检查内容是否真的是 Omniglot。
# 数据集在别处时，用上面的 `DATA_DIR` 指定。

# %%
dataset = "synthetic"
if DATA == "auto":
    try:
        print(f"找到了 Omniglot：{len(load_omniglot(DATA_DIR, download=False).classes)} 个字符。")
        dataset = "omniglot"
    except UserError as error:
        print(f"没有可用的 Omniglot，改用程序绘制的字符。原因：{error}")
of_data = ["--dataset", dataset]
if dataset == "omniglot" and DATA_DIR:
    of_data += ["--data-dir", str(DATA_DIR)]

chosen = {"dataset": dataset, "data_dir": DATA_DIR if dataset == "omniglot" else None}
parts, rule = load_images(settings_from_preset("quickstart", **chosen))
for part, images in parts.items():
    print(f"{part}：{len(images.classes)} 个字符，例如 {images.classes[0]}")

# %% [markdown]
# 训练（train）、验证（val）和测试（test）使用互不相同的字符：测试用的字符，网络从未见过。
#
# ## 3 查看几个任务
#
# 一个任务（episode）有 5 个字符，每行一个：左边是支持集（support set），每个字符一个样例；
# 右边是查询集（query set），是要识别的图片。

# %%
episodes = EpisodeBuilder(parts["test"], n_way=5, k_shot=1, k_query=10, seed=0)
for number in range(2):
    x_spt, y_spt, x_qry, y_qry = episodes[number]
    print(f"任务 {number}：支持集 {x_spt.shape}，查询集 {x_qry.shape}")
    show(draw_episode_table(x_spt, y_spt, x_qry, y_qry), f"episode-{number}.png")

# %% [markdown]
# ## 4 训练
#
# `quickstart` 是一个小规模的预设：网络较窄，300 次元迭代（meta-iteration），每次 8 个任务。
# 使用程序绘制的字符时，在 Intel Xeon 的两个核上需要两到三分钟。左图是损失，右图是准确率。
#
# 训练结果在 `OUTPUT` 里的 `notebook-synthetic` 或 `notebook-omniglot` 文件夹。
# 点击“中断”会先保存进度再停止；再次运行这个单元格就会接着训练。想从头训练，请先删除这个文件夹。
#
# 想用 VisualDL 查看，在 `TRAIN` 里加上 `"--visualdl"`，日志在这个文件夹的 `visualdl` 里。

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
        f"测试准确率 {test['accuracy']:.2%} ± {test['interval']:.2%}，"
        f"共 {test['episodes']} 个任务；随机猜测为 20%。"
    )
else:
    print("训练还没有完成，请再次运行上一个单元格。")

# %% [markdown]
# ## 5 评估随库权重
#
# 本库附带在 Omniglot 上训练好的权重：`5way-1shot`、`5way-5shot`、`20way-1shot`、`20way-5shot`。
# 有 Omniglot 时，在它的测试字符上评估；没有时，在程序绘制的字符上评估，训练这些权重时没有见过这类字符。
# 输出的每一行是若干步内循环（inner step）之后的准确率：第 0 步还没有适应任务，接近随机猜测。

# %%
run("eval.py", ["--pretrained", "5way-1shot", *of_data, "--episodes", str(EPISODES)])

# %% [markdown]
# 用同样的权重做第 3 节的第一个任务（任务 0）：绿框表示答对，红框表示答错。

# %%
classifier = paddle_maml.load("5way-1shot")
x_spt, y_spt, x_qry, y_qry = episodes[0]
prediction = classifier.adapt(x_spt, y_spt).predict(x_qry)
predicted = np.array(prediction.labels)
print(f"{len(y_qry)} 张中答对 {(predicted == y_qry).sum()} 张。")
show(draw_episode_table(x_spt, y_spt, x_qry, y_qry, predicted), "answers.png")

# %% [markdown]
# ## 6 识别自己写的字
#
# 在 `OUTPUT` 的 `characters/support` 里为每个字建一个文件夹，用答案作文件夹名，里面放一张或几张图片；
# 要识别的图片放进 `characters/query`。两到五个字，图片尺寸不限，深字浅底或浅字深底都可以；
# 字要占画面的大部分，程序不会从一整页纸上找字。
#
# 还没有自己的图片时，下面先画三个例子。
# 换成自己的图片时，删除 `characters` 里的例子，放入图片，再运行下面两个单元格。

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


# 图片里只能写拉丁字母，所以中文名用编号代替。
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
# ## 7 这些数字的含义
#
# - **准确率 ± 区间**：多个测试任务的平均准确率及其 95% 置信区间（标准误的 1.96 倍）。
#   任务越多，区间越窄；两个结果的区间重叠时，不要急于断定哪个更好。
# - **直推式（transductive）**：批归一化（batch norm）使用整个查询集的统计量，
#   所以一张图片的预测结果，取决于同时预测的还有哪些图片。
#   Finn et al. 的代码和 2021 年的飞桨复现都是这样测试的，下面第一行也是。
# - **只用支持集的统计量**（`--statistics support`）：逐张预测和一起预测，结果相同。
#   上面识别自己写的字，用的就是这种方式；准确率略低，但更接近实际使用。
# - 没有 Omniglot 时，第 4、5 节的准确率是在程序绘制的字符上测得的，不能与论文比较。

# %%
card = classifier.card
for name, result in (("query", card["test"]), ("support", card["test_support_statistics"])):
    accuracy, interval, number = result["accuracy"], result["interval"], result["episodes"]
    print(f"Omniglot, statistics of the {name} set: {accuracy:.2%} ± {interval:.2%} ({number} episodes)")

# %% [markdown]
# ## 接下来
#
# - 完整的训练：把 `TRAIN` 改成 `["--preset", "omniglot-5way-1shot"]`；
#   全部选项见 `python train.py --help`。
# - 用自己的图片集训练：`docs/own-images.md`。
# - 导出模型，脱离本库使用：`docs/use.md`。
# - 常见问题：`docs/aistudio.md`。
