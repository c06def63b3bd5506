"""The web application of ``xlnet-pipeline ui``: pages over runs, models, data, lineage and schedules."""
