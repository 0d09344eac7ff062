// elector is one candidate of client-go's own leader election, to take turns with wirevip's on one Lease.
// It prints a line "leading" or "stopped" whenever that changes, and the identity of each new leader it sees.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func main() {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "path of the kubeconfig")
	namespace := flag.String("namespace", "default", "namespace of the Lease")
	name := flag.String("name", "", "name of the Lease")
	identity := flag.String("identity", "", "identity of this candidate")
	lease := flag.Duration("lease-duration", 5*time.Second, "lease duration")
	deadline := flag.Duration("renew-deadline", 3*time.Second, "renew deadline")
	retry := flag.Duration("retry-period", time.Second, "retry period")
	release := flag.Bool("release", true, "release the Lease on SIGTERM")
	flag.Parse()
	if err := run(*kubeconfig, *namespace, *name, *identity, *lease, *deadline, *retry, *release); err != nil {
		fmt.Fprintln(os.Stderr, "elector:", err)
		os.Exit(1)
	}
}

func run(kubeconfig, namespace, name, identity string, lease, deadline, retry time.Duration, release bool) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	// client-go sets no timeout for the elector's requests by itself; this is the one its own helper uses.
	config.Timeout = max(time.Second, deadline/2)
	// By default it writes protobuf, which the lab's own API server does not read.
	config.ContentType = "application/json"
	config.AcceptContentTypes = "application/json"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration:   lease,
		RenewDeadline:   deadline,
		RetryPeriod:     retry,
		ReleaseOnCancel: release,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { fmt.Println("leading") },
			OnStoppedLeading: func() { fmt.Println("stopped") },
			OnNewLeader:      func(leader string) { fmt.Printf("leader %q\n", leader) },
		},
	})
	if err != nil {
		return err
	}
	// Run ends after a loss; this candidate campaigns again, as ours does.
	for ctx.Err() == nil {
		elector.Run(ctx)
	}
	return nil
}
