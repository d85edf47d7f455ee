#!/bin/sh

rm -rf '/tmp/waltier-tests-85kls8s6/pg-kprkrvie/data'
