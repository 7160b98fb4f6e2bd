"""Train or evaluate: python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

The same command as ``clim train``, which describes the options.
"""

import argparse
import inspect

from clim.train import add_train_options, train

if __name__ == "__main__":
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=inspect.getdoc(train), formatter_class=layout)
    add_train_options(parser)
    train(parser.parse_args())
