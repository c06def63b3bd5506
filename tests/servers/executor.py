"""What the backends' launchers run in a step's container: kfp's executor, with buckets mounted elsewhere than /gcs."""

import os
import runpy

from kfp.dsl.types import artifact_types

for kind in ("GCS", "S3", "MINIO"):
    setattr(artifact_types, f"_{kind}_LOCAL_MOUNT_PREFIX", os.environ[f"XLNET_{kind}_MOUNT"] + "/")
runpy.run_module("kfp.dsl.executor_main", run_name="__main__")
