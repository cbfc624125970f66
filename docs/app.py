"""The page of `python -m paddle_maml draw`, as a program for hosts of Gradio applications (docs/use.md)."""

import paddle_maml
from paddle_maml.page.app import application

demo = application(paddle_maml.load("5way-1shot"))

if __name__ == "__main__":
    demo.launch()
