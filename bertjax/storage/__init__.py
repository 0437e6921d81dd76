"""Files and folders, on a disk or in Cloud Storage."""
