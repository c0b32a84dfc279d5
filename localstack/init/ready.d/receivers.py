# ruff: noqa: INP001
"""The vendor's side: the bucket and the FIFO queue. LocalStack runs this when it is ready."""

import boto3

from localstack import config

REGION = "eu-central-1"

aws = boto3.session.Session("test", "test", region_name=REGION)
here = config.internal_service_url()
aws.client("s3", endpoint_url=here).create_bucket(
    Bucket="byoc-usage", CreateBucketConfiguration={"LocationConstraint": REGION}
)
aws.client("sqs", endpoint_url=here).create_queue(
    QueueName="byoc-state.fifo", Attributes={"FifoQueue": "true"}
)
