"""What the backends' launchers run in a step's container: kfp's executor, with buckets mounted elsewhere than /gcs."""

import os
import runpy

from kfp.dsl.types import artifact_types

artifact_types._GCS_LOCAL_MOUNT_PREFIX = os.environ["XLNET_GCS_MOUNT"] + "/"
runpy.run_module("kfp.dsl.executor_main", run_name="__main__")
